"""Tiny something: short rendered clips of action classes, stored as Something-Something V2 is."""
