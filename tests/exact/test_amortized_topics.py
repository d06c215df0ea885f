"""Are densities of amortized topic models right, for empty documents too, and are the topics found that made words?"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import softmax

import amortax as am
from amortax.intake import to_batch
from amortax.models import lda, prodlda
from amortax.train.initialise import initialise

TOPICS, WORDS, EVERY = 3, 12, 20  # every twentieth document is empty
MODELS = {"lda": lda, "prodlda": prodlda}
each_model = pytest.mark.parametrize("name", list(MODELS))


def word_shares(name, shares, topics, frequencies):
    """Of documents with these shares of topics."""
    if name == "lda":
        return shares @ softmax(topics, axis=1)
    return softmax(frequencies + shares @ topics, axis=-1)


def texts(name, count):
    """(word counts, word shares of documents of one topic: disjoint words) of documents as the model makes them."""
    rng = np.random.default_rng(0)
    topics = np.full((TOPICS, WORDS), np.log(0.01))
    for k in range(TOPICS):
        topics[k, 4 * k : 4 * k + 4] = 0.0
    shares = rng.dirichlet(np.full(TOPICS, 0.3), count)
    counts = np.stack([rng.multinomial(50, p) for p in word_shares(name, shares, topics, np.zeros(WORDS))])
    counts[::EVERY] = 0
    return counts, softmax(topics, axis=1)


def planned(name, counts):
    data = lda.documents(counts, empty=True)
    model = MODELS[name].amortized(TOPICS, counts.sum(axis=0), doc_topic_prior=0.3)
    return am.amortize(model, data, plate="document"), data


@each_model
def test_the_density_is_that_of_the_formula(name):
    counts = texts(name, 40)[0]
    plan, data = planned(name, counts)
    batch = to_batch(am.units(data, name="document"))
    joint = initialise(plan, batch, jax.random.key(0))[0]
    free, topics = np.random.default_rng(1).normal(size=(40, TOPICS)), np.asarray(joint.params["topics"], float)
    sd = np.sqrt((1 - 1 / TOPICS) / 0.3)
    batch = jax.tree.map(jnp.asarray, batch)
    found = jax.jit(lambda free: joint.log_prob(free, jnp.zeros(0), batch))(jnp.asarray(free, jnp.float32))
    frequencies = np.log((counts.sum(axis=0) + 1.0) / (counts.sum() + WORDS))
    for document, (h, row) in enumerate(zip(free, counts, strict=True)):
        probs = word_shares(name, softmax(h), topics, frequencies)
        exact = stats.norm.logpdf(h, 0.0, sd).sum() + stats.multinomial.logpmf(row, row.sum(), probs / probs.sum())
        assert float(found.unit[document]) == pytest.approx(exact, rel=1e-4, abs=1e-3)
    assert plan.inputs.features[0].positive  # the encoder sees logarithms of counts beside them


def test_topics_start_near_the_frequencies_of_words():
    counts = texts("lda", 40)[0]
    frequencies = (counts.sum(axis=0) + 1.0) / (counts.sum() + WORDS)
    for name in MODELS:
        plan, data = planned(name, counts)
        joint = initialise(plan, to_batch(am.units(data, name="document")), jax.random.key(0))[0]
        topics = np.asarray(joint.params["topics"], float)
        started = word_shares(name, np.eye(TOPICS), topics, np.log(frequencies))
        assert 0.01 < np.abs(np.log(started / frequencies)).max() < 0.5  # apart, but not far


@each_model
def test_an_empty_document_has_the_prior(name):
    counts = texts(name, 400)[0]
    plan, data = planned(name, counts)
    posterior = am.fit(plan, data, key=jax.random.key(0), num_steps=300, batch_size=100)
    asked = lda.documents(counts[[0, 1, 2]], empty=True)
    draws = posterior.sample(asked, num_samples=2000, key=jax.random.key(1))["log_shares"].values
    mean, sd = draws.mean(axis=0), draws.std(axis=0)
    prior = np.sqrt((1 - 1 / TOPICS) / 0.3)
    divergence = np.sum(0.5 * ((sd / prior) ** 2 + (mean / prior) ** 2 - 1.0) - np.log(sd / prior), axis=1)
    print("nats from the prior: empty", divergence[0], "others", divergence[1:])
    assert divergence[0] < 0.1
    assert np.all(divergence[1:] > 1.0)  # so that it is not q of every document


@pytest.mark.slow
@each_model
def test_topics_and_shares_are_found_that_made_the_words(name):
    counts, truth = texts(name, 1000)
    plan, data = planned(name, counts)
    posterior = am.fit(plan, data, key=jax.random.key(0), num_steps=1500, batch_size=100)
    topics = np.asarray(posterior.joint.params["topics"], float)
    found = word_shares(name, np.eye(TOPICS), topics, lda.log_frequencies(counts.sum(axis=0)))
    orders = [list(order) for order in itertools.permutations(range(TOPICS))]
    off = [np.abs(found[order] - truth).sum(axis=1).max() / 2 for order in orders]
    print("largest total variation of a topic", min(off))
    assert min(off) < 0.03  # 17,000 words each: 12 shares are known to about 0.01 in total variation
