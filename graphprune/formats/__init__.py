"""Models and files: what is read, how it is checked, and how it is written so that nothing is ever half there."""
