from __future__ import annotations

from pathlib import Path

import pytest

from fcos.data.annotations import Annotations, Record
from fcos.data.formats import voc, yolo
from fcos.data.splits import find_splits
from fcos.errors import DatasetError

XML = """<annotation><filename>{name}.jpg</filename><size><width>40</width><height>30</height></size>{objects}
</annotation>"""
OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult>
<part><name>head</name><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>1</xmax><ymax>1</ymax></bndbox></part>
<bndbox><xmax>{3}</xmax><xmin>{1}</xmin><ymin>{0}</ymin><ymax>{2}</ymax></bndbox></object>"""


def xml_object(name: str, ymin: float, xmin: float, ymax: float, xmax: float, difficult: int = 0) -> str:
    return OBJECT.format(ymin, xmin, ymax, xmax, name=name, difficult=difficult)


@pytest.fixture
def write_xml(tmp_path):
    def write(stem: str, *objects: str, folder: str = "Annotations") -> Path:
        path = tmp_path / folder / f"{stem}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(XML.format(name=stem, objects="".join(objects)))
        return path

    return write


@pytest.fixture
def dataset(tmp_path, write_xml, make_image) -> Path:
    """Three images, cats in train and a dog in val only."""
    write_xml("a", xml_object("cat", 1, 2, 20.5, 30), xml_object("cat", 3, 4, 5, 6, difficult=1))
    write_xml("b")
    write_xml("c", xml_object("ape", 1, 2, 3, 4))
    for name in ("a.jpg", "b.png", "c.JPEG"):
        make_image(f"JPEGImages/{name}")
    sets = tmp_path / "ImageSets" / "Main"
    sets.mkdir(parents=True)
    (sets / "train.txt").write_text("b\na\n")
    (sets / "val.txt").write_text("c\n\n")
    (sets / "cat_train.txt").write_text("a  1\nb -1\n")
    return tmp_path


def test_boxes_difficult_and_size_are_read_as_they_stand(dataset):
    first, second, third = voc.read(dataset)

    assert first.boxes_xyxy.tolist() == [[2, 1, 30, 20.5], [4, 3, 6, 5]]
    assert first.is_difficult.tolist() == [False, True]
    assert first.size_hw == (30, 40)
    assert len(second.labels) == 0
    assert third.image_id == 3
    assert first.where.endswith("a.xml")


def test_an_image_is_found_by_its_stem_with_any_suffix(dataset):
    assert [record.path.name for record in voc.read(dataset)] == ["a.jpg", "b.png", "c.JPEG"]


def test_a_split_file_picks_images_in_its_order(dataset):
    annotations = voc.read(dataset / "ImageSets/Main/train.txt")

    assert [record.path.name for record in annotations] == ["b.png", "a.jpg"]


def test_split_files_of_a_class_are_read_without_their_flags(dataset):
    annotations = voc.read(dataset / "ImageSets/Main/cat_train.txt")

    assert [record.path.name for record in annotations] == ["a.jpg", "b.png"]


def test_all_splits_have_the_class_names_of_the_whole_folder(dataset):
    train = voc.read(dataset / "ImageSets/Main/train.txt")
    val = voc.read(dataset / "ImageSets/Main/val.txt", root=dataset)

    assert train.class_names == val.class_names == ("ape", "cat")
    assert val.labels.tolist() == [0]


def test_given_names_set_the_order_and_refuse_others(dataset):
    assert voc.read(dataset, names=["cat", "dog", "ape"]).labels.tolist() == [0, 0, 2]
    with pytest.raises(DatasetError, match=r"not among the class names: 'ape', 'cat'(.|\n)*which are 'dog'"):
        voc.read(dataset, names=["dog"])


def test_images_may_lie_beside_the_xml_files(write_xml, make_image, tmp_path):
    write_xml("a", folder="mixed")
    make_image("mixed/a.png")

    assert voc.read(tmp_path / "mixed")[0].path == tmp_path / "mixed/a.png"


def test_of_two_images_with_one_stem_the_file_name_inside_decides(write_xml, make_image, tmp_path):
    write_xml("a")
    make_image("JPEGImages/a.bmp")
    make_image("JPEGImages/a.jpg")

    assert voc.read(tmp_path)[0].path.name == "a.jpg"


def test_a_missing_image_is_named_where_it_should_be(write_xml, make_image, tmp_path):
    write_xml("a")
    write_xml("b")
    make_image("images/b.jpg")

    assert voc.read(tmp_path)[0].path == tmp_path / "images/a.jpg"


def test_a_size_of_zero_is_unknown(tmp_path):
    (tmp_path / "a.xml").write_text(
        "<annotation><size><width>0</width><height>0</height></size></annotation>"
    )

    assert voc.read(tmp_path)[0].size_hw is None


@pytest.mark.parametrize("names", ["photo 1\nphoto 0\n", "photo\nphoto 1\n"])
def test_names_that_end_like_a_flag_stay_whole(write_xml, tmp_path, names):
    for name in ("photo", "photo 0", "photo 1"):
        write_xml(name, xml_object("cat", 1, 2, 3, 4))
    (tmp_path / "split.txt").write_text(names)

    assert [record.path.stem for record in voc.read(tmp_path / "split.txt")] == names.splitlines()


def test_every_file_that_cannot_be_read_is_named(write_xml, tmp_path):
    write_xml("good", xml_object("cat", 1, 2, 3, 4))
    write_xml("nan", xml_object("cat", 1, 2, 3, "wide"))  # type: ignore[arg-type]
    write_xml("nameless", xml_object("", 1, 2, 3, 4))
    (tmp_path / "Annotations/broken.xml").write_text("<annotation>")
    (tmp_path / "split.txt").write_text("good\nnan\nnameless\nbroken\ngone\n")

    with pytest.raises(DatasetError) as error:
        voc.read(tmp_path / "split.txt")

    assert "4 annotation files cannot be read" in str(error.value)
    assert "nan.xml: object 1 ('cat') <xmax> 'wide' is not a number" in str(error.value)
    assert "nameless.xml: object 1 has no name" in str(error.value)
    assert "broken.xml: not well-formed xml" in str(error.value)
    assert "gone.xml: not found" in str(error.value)


def test_a_source_without_xml_is_refused(tmp_path):
    with pytest.raises(DatasetError, match="no folder of VOC xml files found"):
        voc.read(tmp_path)


@pytest.mark.parametrize("copy_images", [False, True])
def test_what_is_written_is_read_back(dataset, tmp_path, copy_images):
    first = voc.read(dataset)
    voc.write(first, tmp_path / "out", copy_images=copy_images)
    second = voc.read(tmp_path / "out/ImageSets/Main/trainval.txt")

    assert second.boxes_xyxy.tolist() == first.boxes_xyxy.tolist()
    assert second.is_difficult.tolist() == first.is_difficult.tolist()
    assert second.labels.tolist() == first.labels.tolist()
    assert [record.size_hw for record in second] == [(30, 40)] * 3
    images = [record.path for record in second]
    assert [path.name for path in images] == ["a.jpg", "b.png", "c.JPEG"]
    assert all(path.is_file() and path.is_symlink() is not copy_images for path in images)


def test_images_in_subfolders_stay_there(write_xml, make_image, tmp_path):
    write_xml("day/a", xml_object("cat", 1, 2, 3, 4))
    write_xml("night/a", xml_object("dog", 1, 2, 3, 4))
    make_image("JPEGImages/day/a.jpg")
    make_image("JPEGImages/night/a.jpg")
    voc.write(voc.read(tmp_path), tmp_path / "out")

    found = voc.read(tmp_path / "out")

    assert [record.path.relative_to(tmp_path / "out/JPEGImages").as_posix() for record in found] == [
        "day/a.jpg",
        "night/a.jpg",
    ]


def test_images_that_would_share_an_xml_file_are_refused(dataset, make_image, tmp_path):
    paths = [make_image("p/a.jpg"), make_image("p/a.png")]
    records = [Record.make(path, [], [], i, where=f"line {i}") for i, path in enumerate(paths)]
    annotations = Annotations.from_records(records, ["cat"], source=tmp_path, format="list")

    with pytest.raises(
        DatasetError, match=r"matched to an annotation file(.|\n)*line 1: .*a.png' would share"
    ):
        voc.write(annotations, tmp_path / "out")


def test_a_hidden_image_is_refused_as_nobody_would_find_it_again(make_image, tmp_path):
    record = Record.make(make_image(".a.jpg"), [[1, 2, 20, 25]], [0], 1, where="line 1")
    annotations = Annotations.from_records([record], ["cat"], source=tmp_path, format="list")

    for write in (voc.write, yolo.write):
        with pytest.raises(DatasetError, match=r"line 1: .*\.a\.jpg' is hidden"):
            write(annotations, tmp_path / "out")


@pytest.mark.parametrize("images", ["JPEGImages", "JPEGImages/{part}"])
def test_parts_within_the_folder_of_annotations_are_parts(tmp_path, write_xml, make_image, images):
    for part, stem in (("train", "a"), ("val", "b")):
        write_xml(stem, xml_object("cat", 1, 2, 20, 30), folder=f"Annotations/{part}")
        make_image(f"{images.format(part=part)}/{stem}.jpg")

    splits = find_splits(tmp_path)

    assert splits.evaluation is not None
    assert [split.source.name for split in splits.all()] == ["train", "val"]
    for split, name in zip(splits.all(), ("a.jpg", "b.jpg"), strict=True):
        [record] = voc.read(split.source, root=split.root)
        assert (record.path.name, record.path.is_file()) == (name, True)
    assert all(record.path.is_file() for record in voc.read(tmp_path))


@pytest.mark.parametrize(
    ("name", "source", "facts"),
    [
        ("bccd", "ImageSets/Main/trainval.txt", (292, 3943, 3, 0)),
        ("bccd", "", (364, 4888, 3, 0)),
        ("raccoon", "", (200, 217, 1, 0)),
        ("voc100", "gts/pascalvoc_format", (100, 273, 20, 38)),
    ],
)
def test_real_sets_are_read_whole(shared, name, source, facts):
    annotations = voc.read(shared / "data" / name / source)

    counts = (
        len(annotations),
        len(annotations.labels),
        annotations.num_classes,
        annotations.is_difficult.sum(),
    )
    assert counts == facts
    assert all(record.path.is_file() for record in annotations)


def test_of_two_images_that_no_file_name_tells_apart_none_is_taken(tmp_path, make_image):
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations/a.xml").write_text("<annotation/>")
    make_image("JPEGImages/a.bmp")
    make_image("JPEGImages/a.jpg")

    with pytest.raises(DatasetError, match=r"several images\n  in: a.xml: 'a.bmp' or 'a.jpg'"):
        voc.read(tmp_path)


def test_images_without_an_xml_file_are_told_of(dataset, make_image):
    assert voc.read(dataset).notes == ()
    make_image("JPEGImages/d.jpg")
    assert voc.read(dataset).notes == ("1 image without an xml file is not used, for example 'd.jpg'",)
    make_image("JPEGImages/e.jpg")
    assert voc.read(dataset).notes[0].startswith("2 images without an xml file are not used")
    assert voc.read(dataset / "ImageSets" / "Main" / "val.txt").notes == ()


def test_images_of_other_parts_have_their_xml_files_there(write_xml, make_image, tmp_path):
    for part, stem in (("train", "a"), ("val", "b")):
        write_xml(stem, xml_object("cat", 1, 2, 3, 4), folder=f"Annotations/{part}")
        make_image(f"JPEGImages/{stem}.jpg")
    assert voc.read(tmp_path / "Annotations" / "train").notes == ()


def test_a_folder_called_like_an_xml_file_is_refused(dataset):
    (dataset / "Annotations" / "d.xml").mkdir()
    with pytest.raises(DatasetError, match=r"1 annotation file cannot be read\n.*d\.xml: this is a folder"):
        voc.read(dataset)


def test_names_with_backslashes_in_a_split_are_those_of_subfolders(write_xml, make_image, tmp_path):
    write_xml("sub/a", xml_object("cat", 1, 2, 3, 4))
    image = make_image("JPEGImages/sub/a.jpg")
    (tmp_path / "ImageSets").mkdir()
    (tmp_path / "ImageSets" / "train.txt").write_text("sub\\a\n")
    assert voc.read(tmp_path / "ImageSets" / "train.txt")[0].path == image


def test_lists_of_splits_are_found_where_other_tools_put_them(dataset):
    def splits() -> list[str]:
        return [split.source.relative_to(dataset).as_posix() for split in find_splits(dataset).all()]

    sets = dataset / "ImageSets"
    (sets / "Main" / "train.txt").rename(sets / "Main" / "Train.txt")
    (sets / "Main" / "val.txt").rename(sets / "Main" / "Validation.txt")
    assert splits() == ["ImageSets/Main/Train.txt", "ImageSets/Main/Validation.txt"]  # of CVAT

    (sets / "Main" / "Train.txt").rename(sets / "train.txt")
    (sets / "Main" / "Validation.txt").rename(sets / "val.txt")
    assert splits() == ["ImageSets/train.txt", "ImageSets/val.txt"]

    for name in ("train.txt", "val.txt"):
        (sets / name).rename(dataset / name)
    assert splits() == ["train.txt", "val.txt"]

    (dataset / "train.txt").write_text("./JPEGImages/a.jpg ./Annotations/a.xml\n")  # of PaddleDetection
    assert splits() == ["train.txt", "val.txt"]
    assert [record.path.name for record in voc.read(dataset / "train.txt")] == ["a.jpg"]

    (dataset / "train.txt").write_text("/other/images/9.jpg\n")  # of another format
    (dataset / "val.txt").unlink()
    assert splits() == ["."]


def test_xml_files_in_no_split_are_pointed_out(dataset, write_xml, make_image):
    assert find_splits(dataset).notes == ()
    for stem in ("d", "e"):
        write_xml(stem, xml_object("cat", 1, 2, 20.5, 30))
        make_image(f"JPEGImages/{stem}.jpg")
    assert find_splits(dataset).notes == ("2 annotation files belong to no split, for example 'd.xml'",)
    (dataset / "ImageSets/Main/trainval.txt").write_text("a\nb\nc\nd\ne\n")
    assert find_splits(dataset).notes == ()


def test_xml_files_of_one_name_are_refused(dataset):
    (dataset / "Annotations" / "a.XML").write_text(XML.format(name="a", objects=""))
    with pytest.raises(
        DatasetError, match=r"for an image that already has one(.|\n)*Annotations/a.xml: 'a.XML' exists too"
    ):
        voc.read(dataset)


def test_an_image_with_a_yolo_file_instead_of_xml_is_pointed_out(dataset, make_image):
    make_image("JPEGImages/d.jpg")
    (dataset / "JPEGImages" / "d.txt").write_text("0 0.5 0.5 0.2 0.2\n")
    [note] = voc.read(dataset).notes
    assert note.endswith("'d.jpg' (1 of them have a .txt file, as in YOLO format: convert these first)")
