"""Parameter counts of Chouliaras 2021, appendix B."""

import pytest

from filigree_papers.counts import counts


def test_counts_of_appendix_b():
    rows = counts()
    assert len(rows) == 7
    ours = {"LUNG": (174_245, 171_463), "ORL": (144_320, 137_371), "Prostate-GE": (224_322, 221_129),
            "GLIOMA": (195_684, 192_758), "Fashion 3 x 1000": (128_690, 124_985),
            "Fashion 4000-1000-4000": (344_690, 335_380), "Fashion 4 x 4000": (631_690, 622_467)}  # fmt: skip
    for row in rows:
        assert row.dense == row.printed_dense
        assert row.distinct == ours[row.setting][0]
        assert row.merged == pytest.approx(ours[row.setting][1], rel=0.002)  # drawn: within chance of the notes' figure
        assert abs(row.difference) < 0.05
