from upsnet.text import cut, first_line


def test_an_error_without_a_message_is_named_by_its_type():
    assert first_line(MemoryError()) == "MemoryError"
    assert first_line(ValueError("\n one\ntwo")) == "one"
    assert len(first_line(ValueError("x" * 5000))) < 310


def test_long_text_loses_its_middle():
    assert cut("short", 60) == "short"
    assert cut("a" * 100 + "end", 60) == "a" * 40 + " ... " + "a" * 12 + "end"
