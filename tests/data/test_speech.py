import io
import wave
import zipfile
from collections import Counter

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from scipy.io import wavfile

from qbook import data
from qbook.data import speech
from qbook.data.catalogue import SPEECH_ARCHIVE

needs_speech = pytest.mark.skipif(
    not data.available(SPEECH_ARCHIVE), reason=data.how_to_get(SPEECH_ARCHIVE)
)


@needs_speech
def test_there_are_fifty_takes_of_every_digit_by_each_of_six_speakers():
    # The data set's README: 6 speakers, 3000 recordings, 50 of each digit per speaker.
    recordings = data.spoken_digits()
    takes = Counter((digit, speaker) for _, _, digit, speaker in recordings)
    assert len(recordings) == 3000
    assert len(takes) == 60
    assert set(takes.values()) == {50}
    assert {rate for _, rate, _, _ in recordings} == {8000}


@needs_speech
def test_recordings_equal_what_scipy_reads():
    recordings = data.spoken_digits()
    speakers = sorted({speaker for _, _, _, speaker in recordings})
    with zipfile.ZipFile(data.fetch(SPEECH_ARCHIVE)) as archive:
        members = [m for m in archive.namelist() if m.endswith(".wav")]
        for member in members[::97]:
            digit, speaker, take = member.split("/")[-1].removesuffix(".wav").split("_")
            i = (int(digit) * 6 + speakers.index(speaker)) * 50 + int(take)
            rate, samples = wavfile.read(io.BytesIO(archive.read(member)))
            assert recordings[i][1:] == (rate, int(digit), speaker)
            assert_array_equal(recordings[i][0], samples)
            assert recordings[i][0].dtype == np.int16


def test_a_recording_of_another_format_is_refused():
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((2, 2, 8000, 0, "NONE", ""))
        writer.writeframes(bytes(8))
    with pytest.raises(ValueError, match="not 16-bit mono"):
        speech._read_wav(file.getvalue())
