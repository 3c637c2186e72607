"""`hesse vsa`: JSON records as vectors, and the nearest of them."""
