"""One xml file: read where it is Pascal VOC for certain, refused where boxes could be lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fcos.data.formats.voc_xml import Xml, read_xml

BOX = "<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>20</xmax><ymax>30</ymax></bndbox>"
OBJECT = f"<object><name>cat</name>{BOX}</object>"


@pytest.fixture
def read(tmp_path: Path):
    def read_text(content: str | bytes) -> Xml:
        file = tmp_path / "0.xml"
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_xml(file)

    return read_text


@pytest.mark.parametrize(
    "content",
    [
        f"<annotation>{OBJECT}</annotation>",
        f'<annotation xmlns="http://example.org/voc">{OBJECT}</annotation>',
        f"<annotations><annotation>{OBJECT}</annotation></annotations>",
        f'<!DOCTYPE annotation SYSTEM "voc.dtd"><annotation>{OBJECT}</annotation>',
    ],
)
def test_an_object_is_found_whatever_is_around_it(read, content):
    xml = read(content)

    assert (xml.class_names, xml.boxes_xyxy) == (["cat"], [[3, 4, 20, 30]])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            "<annotations><version>1.1</version><image id='0'/></annotations>",
            "CVAT's own xml; export Pascal VOC",
        ),
        ("<html/>", "the root element is <html>, not <annotation>"),
        ("<annotations><annotation/><annotation/></annotations>", "<annotations> with 2 images"),
        (f"<annotation><objects>{OBJECT}</objects></annotation>", "<objects> contains boxes"),
        (f"<annotation><Object>{BOX}</Object></annotation>", "<Object> contains boxes"),
        (f"<annotation><item>{BOX}</item></annotation>", "<item> contains boxes"),
        (
            f"<annotation><object><name>cat</name>{OBJECT}</object></annotation>",
            "object 1 contains another object",
        ),
        (
            "<annotation><object><name>cat</name><robndbox/></object></annotation>",
            "has 0 <bndbox> elements, not one",
        ),
        (
            "<annotation><object><name>cat</name><polygon/></object></annotation>",
            "has 0 <bndbox> elements, not one",
        ),
        (
            f"<annotation><object><name>cat</name>{BOX}{BOX}</object></annotation>",
            "'cat'.* has 2 <bndbox> elements, not one",
        ),
        (f"<annotation><object><name>cat</name><name>dog</name>{BOX}</object></annotation>", "several names"),
        (f"<annotation>{OBJECT.replace('>3<', '>3,5<')}</annotation>", "> '3,5' is not a number"),
        (f"<annotation>{OBJECT.replace('>3<', '>1_0<')}</annotation>", "> '1_0' is not a number"),
        ("", "not well-formed xml"),
        (
            "<?xml version='1.0' encoding='rot13'?><annotation/>",
            "not well-formed xml: .rot13. is not a text encoding",
        ),
        ("<?xml version='1.0' encoding='gbk'?><annotation/>", "multi-byte encodings are not supported"),
        ('<!DOCTYPE a [<!ENTITY b "bbbb">]><annotation>&b;</annotation>', "xml with entities"),
    ],
)
def test_a_file_that_may_hold_other_boxes_is_refused(read, content, words):
    with pytest.raises(ValueError, match=words):
        read(content)


def test_entities_in_utf_16_do_not_unfold(read):
    entities = "".join(f'<!ENTITY a{i + 1} "{f"&a{i};" * 10}">' for i in range(12))
    bomb = f'<!DOCTYPE a [<!ENTITY a0 "aaaaaaaaaa">{entities}]><annotation>&a12;</annotation>'

    with pytest.raises(ValueError, match="not well-formed xml"):
        read(f'<?xml version="1.0" encoding="utf-16"?>{bomb}'.encode("utf-16"))


@pytest.mark.parametrize(
    ("stated", "wanted"),
    [("1", True), ("0", False), ("true", True), ("False", False), ("Unspecified", False), ("", False)],
)
def test_difficult_means_what_it_says(read, stated, wanted):
    described = f"<difficult>{stated}</difficult>{BOX}"

    assert read(f"<annotation>{OBJECT.replace(BOX, described)}</annotation>").is_difficult == [wanted]


@pytest.mark.parametrize("stated", ["2", "yes", "-1"])
def test_difficult_that_can_mean_anything_is_refused(read, stated):
    with pytest.raises(ValueError, match=r"object 1 \('cat'\) <difficult> is the string"):
        read(f"<annotation>{OBJECT.replace(BOX, f'<difficult>{stated}</difficult>{BOX}')}</annotation>")


@pytest.mark.parametrize("side", ["0", "-3", "nan", "inf", "1e308", "wide", ""])
def test_a_stated_size_that_makes_no_sense_is_not_stated(read, side):
    size = f"<size><width>64</width><height>{side}</height></size>"

    assert read(f"<annotation>{size}</annotation>").size_hw is None


def test_a_deep_file_ends(read):
    assert read("<annotation>" + "<a>" * 100_000 + "</a>" * 100_000 + "</annotation>").class_names == []


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "0.xml")

    with pytest.raises(ValueError, match="this is a pipe, not a file"):
        read_xml(tmp_path / "0.xml")


def test_a_rotated_box_becomes_the_upright_box_around_it(read):
    stated = "<attributes><attribute><name>{}</name><value>{}</value></attribute></attributes>"
    long = "<bndbox><xmin>10</xmin><ymin>90</ymin><xmax>190</xmax><ymax>110</ymax></bndbox>"
    for degrees, wanted in (
        ("90.0", [90, 10, 110, 190]),
        ("180", [10, 90, 190, 110]),
        ("0.0", [10, 90, 190, 110]),
    ):
        rotation = stated.format("rotation", degrees)
        xml = read(f"<annotation><object><name>cat</name>{long}{rotation}</object></annotation>")
        assert xml.boxes_xyxy[0] == pytest.approx(wanted)
        assert xml.num_rotated == (float(degrees) != 0)
    xml = read(
        f"<annotation><object><name>cat</name>{long}{stated.format('color', 'red')}</object></annotation>"
    )
    assert xml.boxes_xyxy == [[10, 90, 190, 110]]
    rotation = stated.format("rotation", "much")
    with pytest.raises(ValueError, match="rotation 'much' is not a number"):
        read(f"<annotation><object><name>cat</name>{long}{rotation}</object></annotation>")


def test_an_encoding_that_the_parser_lacks_is_named(read):
    with pytest.raises(ValueError, match="multi-byte encodings are not supported: save it as UTF-8"):
        read(f'<?xml version="1.0" encoding="gb2312"?><annotation>{OBJECT}</annotation>')
