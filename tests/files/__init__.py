"""Files: layouts, broken files, results, and what is told of them."""
