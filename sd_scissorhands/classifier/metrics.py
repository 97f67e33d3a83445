"""What the figures of a classifier that forgot are called and mean; `measure` computes them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ClassifierMetric:
    """A figure under the name that it has in JSON."""

    title: str  # heads its column
    meaning: str  # in a sentence
    best: str  # its ideal value
    unit: str = "share"  # share | number
    in_words: str = ""  # heads its column on a small terminal, where three figures fit; "": left out there
    axis: str = ""  # of the plot beside the retrained model: forgotten | retained


RETRAINED = "as retrained"
# fmt: off
CLASSIFIER_METRICS = {
    "forget_accuracy": ClassifierMetric("accuracy, forgotten", "on the training pictures that are to be forgotten; nearest to the retrained model's is best.", RETRAINED, in_words="forgotten: right", axis="forgotten"),
    "test_forget_accuracy": ClassifierMetric("forgotten, test", "on the test pictures of the forgotten class, of which none was trained on.", RETRAINED),
    "retain_accuracy": ClassifierMetric("accuracy, retained", "on the other training pictures; higher is better.", RETRAINED),
    "test_accuracy": ClassifierMetric("accuracy, test", "on test pictures, without those of a forgotten class; higher is better.", RETRAINED, in_words="test: right", axis="retained"),
    "mia": ClassifierMetric("MIA", "membership inference from the loss, by logistic regression: how often it is right; 50% is best.", "50 %, chance"),
    "mia_svc": ClassifierMetric("MIA, SVC", "forgotten pictures that a support vector classifier takes for ones never trained on; nearest to the retrained model's is best.", RETRAINED),
    "probe": ClassifierMetric("probe", "accuracy on what is forgotten of a fresh linear classifier on the model's features: what they still hold.", RETRAINED),
    "relearn": ClassifierMetric("relearn steps", "steps of fine-tuning until what was forgotten is back; more is better. n counts relearnings, and in parentheses is their range.", RETRAINED, "number"),
    "gap": ClassifierMetric("gap", "mean absolute difference to the retrained model in forgotten, retained and test accuracy and MIA; lower is better, and n counts these figures.", "0", in_words="gap to retrained"),
}
# fmt: on
