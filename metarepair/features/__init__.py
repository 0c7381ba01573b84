"""Image features for Fréchet distances, their files, and the tables of distances and confidence."""
