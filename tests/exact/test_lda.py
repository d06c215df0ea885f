"""Is a document's bound given the topics a bound, its slope right, and are topics found that made the words?"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import betaln, digamma, gammaln, logsumexp

import amortax as am
from amortax.models import lda

PRIOR = 0.3
TOPICS = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6]])
COUNTS = np.array([4, 1, 2])

bound = jax.jit(lda.document_bound)


def exact_log_prob(counts, topics):
    """log p(words in order | topics) by quadrature over the log odds of θ, of which the ends are smooth."""
    odds = np.linspace(-60, 60, 40_001)
    log_first, log_second = -np.logaddexp(0, -odds), -np.logaddexp(0, odds)
    log_words = np.logaddexp(log_first[:, None] + np.log(topics[0]), log_second[:, None] + np.log(topics[1]))
    log_p = PRIOR * (log_first + log_second) - betaln(PRIOR, PRIOR) + log_words @ counts
    return logsumexp(log_p) + np.log(odds[1] - odds[0])


@pytest.mark.parametrize("counts", [COUNTS, np.array([1, 0, 0]), np.array([30, 5, 60])])
def test_the_bound_of_a_document_is_below_its_log_density(counts):
    found = float(bound(jnp.asarray(counts), jnp.asarray(TOPICS), PRIOR))
    exact = exact_log_prob(counts, TOPICS)
    print(counts, "bound", found, "exact", exact)
    assert found <= exact + 1e-4
    if counts.sum() == 1:  # one word: log Σ_k p(k) p(word | k) by hand
        assert exact == pytest.approx(np.log(TOPICS[:, 0].mean()), abs=1e-6)


def test_shares_and_bound_are_those_of_coordinate_ascent_word_by_word():
    shares, words = np.full(2, PRIOR + COUNTS.sum() / 2), [w for w, n in enumerate(COUNTS) for _ in range(n)]
    for _ in range(30):
        log_shares = digamma(shares) - digamma(shares.sum())
        each = [np.exp(log_shares) * TOPICS[:, word] for word in words]
        shares = PRIOR + sum(topic / topic.sum() for topic in each)
    found = jax.jit(lda.document_shares)(jnp.asarray(COUNTS), jnp.asarray(TOPICS), PRIOR)
    np.testing.assert_allclose(found, shares, rtol=1e-4)
    log_shares = digamma(shares) - digamma(shares.sum())
    of_words = sum(logsumexp(log_shares + np.log(TOPICS[:, word])) for word in words)  # at the best q(topic of a word)
    of_shares = (PRIOR - 1) * log_shares.sum() - betaln(PRIOR, PRIOR) + stats.dirichlet(shares).entropy()
    assert float(bound(jnp.asarray(COUNTS), jnp.asarray(TOPICS), PRIOR)) == pytest.approx(
        of_words + of_shares, abs=1e-4
    )


def test_the_slope_by_the_topics_needs_none_through_the_ascent():
    gradient = jax.jit(jax.grad(lda.document_bound, argnums=1))
    slope = np.asarray(gradient(jnp.asarray(COUNTS), jnp.asarray(TOPICS), PRIOR))
    for place in itertools.product(range(2), range(3)):
        step = np.zeros((2, 3))
        step[place] = 0.01
        high, low = (float(bound(jnp.asarray(COUNTS), jnp.asarray(TOPICS + s * step), PRIOR)) for s in (1, -1))
        assert (high - low) / 0.02 == pytest.approx(slope[place], rel=0.02, abs=0.02)


def test_the_bound_at_mean_log_topics_is_scikit_learns():
    decomposition = pytest.importorskip("sklearn.decomposition")
    rng, words = np.random.default_rng(0), 12
    counts, topics = rng.poisson(2.0, (5, words)), rng.gamma(2.0, 3.0, (3, words))
    model = decomposition.LatentDirichletAllocation(
        3, doc_topic_prior=PRIOR, topic_word_prior=0.5, max_doc_update_iter=30, mean_change_tol=0.0
    )
    model.partial_fit(counts)
    log_topics = digamma(topics) - digamma(topics.sum(axis=1, keepdims=True))
    model.components_, model.exp_dirichlet_component_ = topics, np.exp(log_topics)
    of_topics = sum(stats.dirichlet(a).entropy() for a in topics) + (0.5 - 1.0) * log_topics.sum()
    of_topics += 3 * (gammaln(words * 0.5) - words * gammaln(0.5))
    found = float(jnp.sum(bound(jnp.asarray(counts), jnp.exp(jnp.asarray(log_topics)), PRIOR))) + of_topics
    print("bound", found, "scikit-learn's", model.score(counts))
    assert found == pytest.approx(model.score(counts), rel=1e-4)


def test_an_empty_document_has_the_priors_shares_and_tells_nothing_of_the_topics():
    counts, topics = jnp.asarray([[0, 0, 0], COUNTS]), jnp.asarray(TOPICS)
    np.testing.assert_allclose(jax.jit(lda.document_shares)(counts, topics, PRIOR)[0], PRIOR, rtol=1e-6)
    value, slope = jax.jit(jax.value_and_grad(lambda t: lda.document_bound(counts[0], t, PRIOR)))(topics)
    assert abs(float(value)) < 1e-5
    np.testing.assert_array_equal(slope, 0.0)


def test_empty_documents_are_refused_by_number():
    counts = np.ones((4, 3), int)
    counts[2] = 0
    with pytest.raises(am.DataError, match="unit '2': the document has no words"):
        lda.documents(counts)


@pytest.mark.parametrize("value", [0.4, -1.0, np.nan])
def test_weights_that_are_no_counts_are_refused(value):
    counts = np.ones((4, 3))
    counts[1, 2] = value
    with pytest.raises(am.DataError, match=r"unit '1', word 2: .* is no count .*not shares or weights"):
        lda.documents(counts)


@pytest.mark.slow
def test_topics_are_found_that_made_the_words():
    rng = np.random.default_rng(0)
    topics = np.full((3, 12), 0.01)
    for k in range(3):
        topics[k, 4 * k : 4 * k + 4] = 1.0
    topics /= topics.sum(axis=1, keepdims=True)
    words = rng.dirichlet(np.full(3, 0.3), 1000) @ topics
    data = lda.documents(np.stack([rng.multinomial(50, p) for p in words]))
    model = lda.collapsed(3, doc_topic_prior=0.3, topic_word_prior=0.1)
    plan = am.amortize(model, data, plate="document", shared_family=am.exponential_family())
    posterior = am.fit(plan, data, key=jax.random.key(0), optimizer=am.natural(), num_steps=150, batch_size=100)
    found = posterior.sample(data, num_samples=100, key=jax.random.key(1))["topics"].values.mean(axis=0)
    off = min(np.abs(found[list(order)] - topics).sum(axis=1).max() / 2 for order in itertools.permutations(range(3)))
    print("largest total variation of a topic", off)
    assert off < 0.03  # 17,000 words each: 12 shares are known to about 0.01 in total variation
