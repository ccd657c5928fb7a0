from qbook.lab import results


def test_a_result_is_printed_and_stored_at_the_precision_shown(monkeypatch, capsys):
    stored = []
    display = "IPython.display.display"
    monkeypatch.setattr(display, lambda data, **more: stored.append((data, more)))
    results.result("ratio", 1 / 3, ".2f")
    assert capsys.readouterr().out == "ratio = 0.33\n"
    [(data, more)] = stored
    assert data == {"application/papermill.record/text/plain": "'0.33'"}
    assert more["metadata"]["scrapbook"]["name"] == "ratio"
