"""What people read: tables, drawings, profiles and the numbers of a run as data."""
