"""No public function without an experiment: read from the code, nothing is run."""

from docs.generate import uses


def test_every_public_function_of_these_packages_is_in_an_experiment_with_claims():
    assert {"jdiv.divergences", "jdiv.estimators", "jdiv.bandits", "jdiv.games"} < {*uses.PACKAGES}
    assert uses.unused() == []


def test_what_an_experiment_names_is_found_through_packages_and_functions():
    known = uses.by_function()
    direct = "alignment/preference_minimizers"
    assert direct in known["jdiv.alignment.reference_free", "orpo"]
    # Named by `f_dpo` alone, and by a package that has it from its module.
    assert direct in known["jdiv.alignment.preference", "_of_difference"]
    assert direct in known["jdiv.alignment.margins", "label_smoothed"]
    assert uses.meant("jdiv.mdp.Mdp") == ("jdiv.mdp.model", "Mdp")
    assert uses.meant("jdiv.alignment.preference.no_such_loss") is None
    # A module that stands for another one, and what a decorator puts into a table.
    assert uses.meant("jdiv.generators.from_f") == ("jdiv.divergences.generators", "from_f")
    rows = uses.registered(("jdiv.divergences.generators", "TABLE"))
    assert ("jdiv.divergences.generators", "Chi2KL") in rows
    assert ("jdiv.divergences.generators", "FromF") not in rows
    assert not any("lab" in name for names in known.values() for name in names)


def test_no_experiment_is_left_out():
    named = {name for names in uses.by_function().values() for name in names}
    assert len(named) > 40
    assert all(name.count("/") == 1 for name in named)


def test_the_page_links_to_records_that_there_are():
    page = uses.page({"alignment/coverage"})
    assert "[alignment/coverage](results/alignment.md#result-alignment-coverage)" in page
    assert "`alignment/preference_minimizers`" in page
