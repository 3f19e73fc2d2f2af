"""The earlier place of `modeling_avsegformer.video.sounds`, for code that imports it from here. Needs PyAV."""

from .video.sounds import Noise, Recording, Silence, Siren, as_chunks, hear

__all__ = ["Noise", "Recording", "Silence", "Siren", "as_chunks", "hear"]
