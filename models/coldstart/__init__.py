"""Models for items and users that training has not seen."""
