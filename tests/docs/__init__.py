"""Tests of the documentation: its examples run, its site builds, its package installs."""
