"""Reading what a source is: which files are meant, what their headers say, and how encrypted ones are opened."""
