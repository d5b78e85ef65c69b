"""Names of outputs: no two images, and no class, write to one file or out of the folder."""

import re

from fundax.inference.outputs import distinct, name_of_class, names_for


def test_images_of_one_base_name_never_overwrite_each_other():
    assert names_for(["x/a.png", "y/b.png"]) == ["a", "b"]
    assert names_for(["x/a.png", "y/a.png", "a_1.png"]) == ["a_0", "a_2", "a_1"]
    assert len({name.casefold() for name in names_for(["a.png", "A.jpg", "a.tif", "\u00e9.png", "e\u0301.png"])}) == 5


def test_an_output_of_one_image_is_never_that_of_another():
    endings = ("", "_mean", "_head1")
    names = names_for(["a.png", "a_mean.png", "b/a.png", "a_mean_head1.png"], endings)
    files = [name + ending for name in names for ending in endings]
    assert len(set(files)) == len(files)


def test_class_names_are_no_paths():
    hostile = ("../../x", "/etc/passwd", "a/b", "a\\b", "..", "", "x" * 500, "drusen (soft)", "\u7384", "a\nb", "C:x")
    names = distinct([name_of_class(name) for name in hostile])
    assert len(set(names)) == len(names) and all(re.fullmatch(r"[\w+()-][\w+().-]*", name) for name in names)
    assert name_of_class("drusen (soft)") == "drusen_(soft)" and name_of_class("\u7384") == "\u7384"
