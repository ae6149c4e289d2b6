"""Flips single bits of a store, in every kind of object and every tier, and reads it."""
