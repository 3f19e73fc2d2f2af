"""Masks of what is heard, drawn on your own video. Needs PyAV; a checkpoint never carries this package."""
