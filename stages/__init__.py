"""The programs: four straight-line stages and the click commands that start them."""
