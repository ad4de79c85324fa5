"""Models of the recipes, from libraries that people know."""
