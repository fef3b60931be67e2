"""Tests of training and inference."""
