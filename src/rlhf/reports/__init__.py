"""What finished runs say together: the result table and the verdict on a recipe."""
