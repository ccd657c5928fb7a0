"""Speech: 3000 spoken digits, six speakers, 8 kHz.

Jackson et al., Free Spoken Digit Dataset, doi:10.5281/zenodo.1342401.  Book: used throughout.
"""

import io
import wave

import numpy as np

from qbook.data.archives import load_arrays
from qbook.data.catalogue import SPEECH_ARCHIVE


def spoken_digits():
    """-> list of (samples [length] int16, rate in Hz, digit, speaker), 3000 of them.

    Sorted by digit, speaker and take; 50 takes each, so that ``i % 50`` is the take.  The data
    set's authors test on takes 0-4 and train on the others.  Raises DataUnavailable.
    """
    arrays = load_arrays(SPEECH_ARCHIVE, "all", _decode)
    samples = np.split(arrays["samples"], np.cumsum(arrays["lengths"])[:-1])
    columns = (arrays[key].tolist() for key in ("rates", "digits", "speakers"))
    return list(zip(samples, *columns, strict=True))


def _decode(archive, part):
    recordings = []
    for member in archive.namelist():
        if member.endswith(".wav"):
            digit, speaker, take = member.rsplit("/", 1)[1].removesuffix(".wav").split("_")
            recordings.append((int(digit), speaker, int(take), *_read_wav(archive.read(member))))
    recordings.sort(key=lambda recording: recording[:3])
    digits, speakers, _, rates, samples = zip(*recordings, strict=True)
    return {
        "samples": np.concatenate(samples),
        "lengths": np.array([len(s) for s in samples], np.int32),
        "rates": np.array(rates, np.int32),
        "digits": np.array(digits, np.int8),
        "speakers": np.array(speakers),
    }


def _read_wav(data):
    """-> (rate, samples); wave's reader accepts PCM only, the recordings are 16 bits mono."""
    with wave.open(io.BytesIO(data)) as file:
        if (file.getnchannels(), file.getsampwidth()) != (1, 2):
            raise ValueError(f"{file.getparams()} is not 16-bit mono")
        return file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), "<i2")
