"""Masks of what is heard, drawn on your own video. Needs PyAV; a checkpoint never carries this package."""

from transformers.utils import is_av_available

if is_av_available():
    from .video import MaskFolderWriter as MaskFolderWriter
    from .video import VideoWriter as VideoWriter
    from .video import read_frames as read_frames
    from .video import read_info as read_info
    from .video import to_rgb as to_rgb
