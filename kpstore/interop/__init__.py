"""Converting stores from and to other formats, with a package for each format."""
