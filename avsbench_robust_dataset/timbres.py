"""Two disjoint families of procedurally drawn sounds that belong to no object: one to train on, one to be tested with.

In `random_timbre`, the negatives for training, nothing is ever struck, plucked or clicked, and no sound is shorter
than 0.1 s. Each of `UNSEEN_KINDS`, for evaluation only, is made by something that `random_timbre` cannot do.
"""

import numpy as np

from .subsets import SAMPLES, SAMPLING_RATE

__all__ = ["UNSEEN_KINDS", "random_timbre", "unseen_sound"]

TIME = np.arange(SAMPLES) / SAMPLING_RATE


def _levelled(sound, rng):
    level = 10 ** (rng.uniform(-30, -8) / 20)  # root mean square, full scale 1
    return np.clip(sound * (level / (np.sqrt(np.mean(np.square(sound))) + 1e-9)), -0.999, 0.999).astype(np.float32)


def _noise(rng, count=SAMPLES):
    return rng.standard_normal(count, dtype=np.float32)


def _log_uniform(rng, low, high, size=None):
    return np.exp(rng.uniform(np.log(low), np.log(high), size))


# --- family one: to train on ---

HOP = 16  # samples; slow curves are drawn at 1 kHz and held


def _amplitudes(ratios, rng):
    """Of partials at `ratios` of the lowest frequency: they fall by a random power, and half of the time scatter."""
    return ratios ** -rng.uniform(0, 2) * (rng.exponential(1, len(ratios)) if rng.random() < 0.5 else 1)


def _partials(rng):
    """A stack of steady partials with a random spectrum: harmonic, stretched, or nowhere near either."""
    count = int(rng.integers(1, 16))
    base = _log_uniform(rng, 60, 3000)
    kind = rng.random()
    ratios = np.arange(1, count + 1.0)
    if kind < 0.4:
        ratios **= rng.uniform(0.7, 1.4)
    elif kind < 0.6:
        ratios = _log_uniform(rng, 1, 12, count)
    frequencies = base * ratios
    amplitudes = _amplitudes(ratios, rng) * (frequencies < 7500)
    if not amplitudes.any():
        frequencies, amplitudes = np.array([base]), np.ones(1)
    # A sum of steady partials is one inverse Fourier transform: frequencies are rounded to 0.2 Hz.
    spectrum = np.zeros(SAMPLES // 2 + 1, complex)
    bins = np.round(frequencies * 5).astype(int)
    keep = bins < len(spectrum)
    np.add.at(spectrum, bins[keep], (amplitudes * np.exp(2j * np.pi * rng.random(len(bins))))[keep])
    return np.fft.irfft(spectrum, SAMPLES)


def _frequency_modulation(rng):
    """Chowning's tone: a carrier whose phase another tone of audio rate moves."""
    carrier, modulator = _log_uniform(rng, 80, 4000), _log_uniform(rng, 30, 2000)
    angle = (2 * np.pi * carrier * TIME).astype(np.float32)
    index = np.float32(_log_uniform(rng, 0.3, 6))
    return np.sin(angle + index * np.sin((2 * np.pi * modulator * TIME).astype(np.float32)))


def _wandering_tone(rng):
    """Harmonics of a pitch that wanders from one random height to the next, on a random path."""
    knots = int(rng.integers(3, 30))
    octaves = rng.uniform(0.05, 1) * rng.uniform(-1, 1, knots)
    times = np.concatenate([[0], np.sort(rng.uniform(0, 5, knots - 2)), [5]])
    pitch = _log_uniform(rng, 120, 3000) * np.exp2(np.interp(TIME, times, octaves))
    angle = (2 * np.pi * np.cumsum(pitch) / SAMPLING_RATE).astype(np.float32)
    count = int(min(rng.integers(1, 9), max(1, 7500 // pitch.max())))
    gains = _amplitudes(np.arange(1, count + 1.0), rng)
    return sum(np.float32(gain) * np.sin(k * angle) for k, gain in enumerate(gains, 1))


def _filtered_noise(rng):
    """Noise through a filter with a random slope and up to four random bands."""
    frequency = np.fft.rfftfreq(SAMPLES, 1 / SAMPLING_RATE)[1:]
    octave = np.log2(frequency / 1000)
    gain = np.exp2(octave * rng.uniform(-1.2, 0.6)) * rng.uniform(0, 0.5)
    for _ in range(rng.integers(1, 5)):
        gain = gain + rng.exponential() * np.exp(
            -0.5 * ((octave - rng.uniform(-3.5, 2.9)) / _log_uniform(rng, 0.01, 1.0)) ** 2
        )
    spectrum = np.zeros(len(frequency) + 1, complex)
    spectrum[1:] = gain * (_noise(rng, len(frequency)) + 1j * _noise(rng, len(frequency)))
    return np.fft.irfft(spectrum, SAMPLES)


def _level_curve(rng):
    """How the level moves, at 1 kHz: steady, trembling, on and off (each on lasts 0.1 s or more), or wandering."""
    t = TIME[::HOP]
    kind = rng.integers(0, 4)
    if kind == 0:
        curve = np.ones_like(t)
    elif kind == 1:
        curve = 1 + rng.uniform(0.3, 1) * np.sin(2 * np.pi * _log_uniform(rng, 0.5, 80) * t + rng.uniform(0, 6.3))
    elif kind == 2:
        curve = ((t / rng.uniform(0.25, 1.2) + rng.random()) % 1 < rng.uniform(0.4, 0.9)).astype(float)
    else:
        knots = rng.random(int(rng.integers(4, 40))) ** 2
        curve = np.interp(t, np.linspace(0, 5, len(knots)), knots)
    smooth = np.convolve(np.pad(curve, 2, mode="edge"), np.full(5, 0.2), mode="valid")
    return np.repeat(smooth + rng.uniform(0, 0.1), HOP)


def random_timbre(rng):
    """float32 (80000,), 16 kHz: a sound of no category, drawn at random."""
    sources = (_partials, _frequency_modulation, _wandering_tone, _filtered_noise)
    sound = 0.0
    for _ in range(1 if rng.random() < 0.6 else 2):
        source = sources[rng.integers(len(sources))](rng)
        part = source * _level_curve(rng)
        sound = sound + part / (np.sqrt(np.mean(np.square(part))) + 1e-9) * _log_uniform(rng, 0.3, 1)
    if rng.random() < 0.4:
        sound = sound + _noise(rng) * (10 ** (-rng.uniform(5, 40) / 20))
    return _levelled(sound, rng)


# --- family two: to be tested with ---


def _phase(frequency):
    return 2 * np.pi * np.cumsum(np.broadcast_to(frequency, TIME.shape)) / SAMPLING_RATE


def _alarm(rng):
    """Two tones in turn, as emergency vehicles of continental Europe."""
    low, ratio, half = rng.uniform(400, 900), rng.uniform(1.15, 1.5), rng.uniform(0.3, 0.8)
    angle = _phase(np.where(TIME / half % 2 < 1, low, low * ratio))
    return sum(np.sin(k * angle) / k for k in (1, 2, 3))


def _wail(rng):
    """A tone that glides up and down within seconds, as an air-raid siren."""
    period = rng.uniform(2.5, 6)
    angle = _phase(rng.uniform(250, 450) + rng.uniform(300, 900) * (0.5 - 0.5 * np.cos(2 * np.pi * TIME / period)))
    return sum(np.sin(k * angle) / k for k in range(1, 8))


def _rain(rng):
    """Drops, each a grain of a few milliseconds, 30 to 300 a second: most are heard one by one."""
    out = np.zeros(SAMPLES)
    starts = rng.integers(0, SAMPLES, rng.integers(150, 1500))
    np.add.at(out, starts, rng.exponential(1, len(starts)) * rng.choice([-1, 1], len(starts)))
    t = TIME[:400]
    drop = np.sin(2 * np.pi * rng.uniform(1500, 4000) * t) * np.exp(-t / rng.uniform(0.001, 0.004))
    return np.fft.irfft(np.fft.rfft(out, 2 * SAMPLES) * np.fft.rfft(drop, 2 * SAMPLES))[:SAMPLES]


def _engine(rng):
    """A train of irregular pulses through an exhaust's resonance."""
    rate = rng.uniform(25, 90) * (1 + 0.15 * np.sin(2 * np.pi * rng.uniform(0.1, 0.4) * TIME + rng.uniform(0, 6.3)))
    beats = np.floor(np.cumsum(rate) / SAMPLING_RATE)
    out = np.zeros(SAMPLES)
    strokes = np.flatnonzero(np.diff(beats, prepend=-1))
    out[strokes] = 1 + 0.4 * rng.standard_normal(len(strokes))
    t = TIME[:800]
    pipe = np.sin(2 * np.pi * rng.uniform(90, 350) * t) * np.exp(-t / 0.012)
    return np.fft.irfft(np.fft.rfft(out, 2 * SAMPLES) * np.fft.rfft(pipe, 2 * SAMPLES))[:SAMPLES]


def _vowel_gain(frequency, formants):
    bands = zip(formants, (1, 0.5, 0.25), (80, 110, 160), strict=True)  # Hz, gain, width in Hz
    return sum(gain * np.exp(-0.5 * ((frequency - centre) / width) ** 2) for centre, gain, width in bands)


def _choir(rng):
    """A dozen detuned voices on one vowel, a chord."""
    out, formants = np.zeros(SAMPLES), (rng.uniform(400, 800), rng.uniform(900, 1800), rng.uniform(2400, 3000))
    root = rng.uniform(150, 260)
    for interval in rng.choice([1, 1.25, 1.5, 2], 6):
        pitch = root * interval * (1 + 0.008 * rng.standard_normal())
        angle = _phase(pitch * (1 + 0.01 * np.sin(2 * np.pi * rng.uniform(4, 6) * TIME + rng.uniform(0, 6.3))))
        for k in range(1, 14):
            gain = _vowel_gain(k * pitch, formants)
            if gain > 0.01:
                out += gain * np.sin(k * angle + rng.uniform(0, 6.3))
    return out


def _clock(rng):
    """Isolated ticks."""
    out, period = np.zeros(SAMPLES), rng.uniform(0.25, 0.5)
    t = TIME[:320]
    for number in range(int(5 / period)):
        begin = int((number + 0.3) * period * SAMPLING_RATE)
        pitch = (2600, 3300)[number % 2] * rng.uniform(0.97, 1.03)
        tick = np.sin(2 * np.pi * pitch * t) * np.exp(-t / 0.002)
        out[begin : begin + 320] += tick[: max(0, SAMPLES - begin)]
    return out + 0.001 * rng.standard_normal(SAMPLES)


def _animal(rng):
    """Long calls with moving formants, as of cattle or a wolf."""
    out = np.zeros(SAMPLES)
    length = rng.uniform(0.9, 1.6)
    t = TIME[: int(length * SAMPLING_RATE)]
    for start in np.arange(0.05, 5, length + rng.uniform(0.1, 0.4)):
        pitch = rng.uniform(110, 260) * (1 + 0.35 * np.sin(np.pi * t / length))
        angle = 2 * np.pi * np.cumsum(pitch) / SAMPLING_RATE
        centre = rng.uniform(350, 500) + rng.uniform(200, 700) * t / length
        call = sum(np.exp(-0.5 * ((k * pitch - centre) / 200) ** 2) * np.sin(k * angle) for k in range(1, 16))
        begin = int(start * SAMPLING_RATE)
        piece = (call * np.hanning(len(t)))[: SAMPLES - begin]
        out[begin : begin + len(piece)] += piece
    return out


def _sweeps(rng):
    """Linear chirps, again and again."""
    period = rng.uniform(0.3, 1.2)
    low, high = rng.uniform(200, 900), rng.uniform(2000, 6000)
    ramp = TIME % period / period
    if rng.random() < 0.5:
        ramp = 1 - ramp
    return np.sin(_phase(low + (high - low) * ramp))


def _bells(rng):
    """Struck bells: the partials of a church bell, long decays that overlap."""
    out = np.zeros(SAMPLES)
    for start in np.arange(rng.uniform(0, 0.2), 5, rng.uniform(0.5, 1.0)):
        strike = rng.uniform(300, 900)
        t = TIME[: SAMPLES - int(start * SAMPLING_RATE)]
        for ratio, gain, decay in ((0.5, 0.6, 2.0), (1, 1, 1.2), (1.2, 0.7, 1.0), (1.5, 0.4, 0.7), (2, 0.8, 0.6)):
            out[SAMPLES - len(t) :] += gain * np.sin(2 * np.pi * ratio * strike * t) * np.exp(-t / decay)
    return out


def _guitar(rng):
    """Plucked strings (Karplus and Strong): a burst of noise in a loop that averages it."""
    out = np.zeros(SAMPLES)
    for start in np.arange(0, 5, rng.uniform(0.2, 0.5)):
        begin = int(start * SAMPLING_RATE)
        period = int(SAMPLING_RATE / (rng.choice([110, 147, 165, 196, 220, 294]) * rng.uniform(0.99, 1.01)))
        line = rng.uniform(-1, 1, period)
        rounds = []
        for _ in range(int(1.2 * SAMPLING_RATE / period)):
            rounds.append(line)
            line = 0.498 * (line + np.roll(line, 1))
        piece = np.concatenate(rounds)[: SAMPLES - begin]
        out[begin : begin + len(piece)] += piece
    return out


UNSEEN_KINDS = {
    "alarm": _alarm,
    "wail": _wail,
    "rain": _rain,
    "engine": _engine,
    "choir": _choir,
    "clock": _clock,
    "animal": _animal,
    "sweeps": _sweeps,
    "bells": _bells,
    "guitar": _guitar,
}


def unseen_sound(kind, rng):
    """float32 (80000,), 16 kHz, of one of `UNSEEN_KINDS`."""
    return _levelled(UNSEEN_KINDS[kind](rng), rng)
