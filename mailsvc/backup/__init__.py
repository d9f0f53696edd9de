"""Copies of the whole service, taken while it runs, and mail put back from them."""
