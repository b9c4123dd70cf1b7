"""Texts: templates, encoders, windows over long ones."""
