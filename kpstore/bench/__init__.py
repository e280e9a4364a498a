"""How fast a store reads, beside arrays in memory and beside other formats."""
