"""From a trained student to the files that a user takes away: proven, measured and told about."""
