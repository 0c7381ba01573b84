"""Arachne: search-based repair of the weights that are most to blame (Sohn, Kang and Yoo 2022)."""
