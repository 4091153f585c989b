"""Everything impure: data, the loop, and one file for each paper."""
