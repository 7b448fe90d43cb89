"""What one rank gets, into memory, with nothing written."""
