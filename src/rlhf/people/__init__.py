"""The people in the loop: what they are asked, who stands in for them, and how far they agree."""
