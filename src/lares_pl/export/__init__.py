"""A trained model as a program that runs without this package."""
