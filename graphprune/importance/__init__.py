"""What a channel is worth: criteria, what they look at, and the scores of all groups of a model."""
