"""Every protocol on frozen features again, slowly and plainly, from the definition in its publication.

Each function returns the figures of one label column and seed. `without` names steps to leave out, which shows that
the golden figures depend on them.
"""

import math
from collections import Counter

import numpy as np
from scipy.optimize import minimize
from sklearn.model_selection import StratifiedGroupKFold

from hdc_keras.data.sampling import random_generator

PENALTIES = (1e-3, 1e-2, 1e-1)
NEIGHBOURS, TEMPERATURE, RECALL_AT = 20, 0.07, (1, 5, 10, 20, 50)


def figures_of_scores(scores, classes, labels):
    """Top-1, top-5 and mean class accuracy of scores by video and class."""
    ranked = [sorted(classes, key=lambda label: -row[classes.index(label)]) for row in scores]
    found = {"top1": sum(row[0] == label for row, label in zip(ranked, labels, strict=True)) / len(labels)}
    if len(classes) > 5:
        found["top5"] = sum(label in row[:5] for row, label in zip(ranked, labels, strict=True)) / len(labels)
    return found | {"mean_class_accuracy": by_class([row[0] for row in ranked], labels)}


def by_class(predicted, labels):
    shares = []
    for label in set(labels):
        of_class = [guess == label for guess, other in zip(predicted, labels, strict=True) if other == label]
        shares.append(sum(of_class) / len(of_class))
    return sum(shares) / len(shares)


def means_over_views(videos, names):
    """One vector for each video: its arrays, averaged over views and joined."""
    return [np.concatenate([video.views[name].mean(axis=0) for name in names]) for video in videos]


def standardised(train, test):
    mean, deviation = np.mean(train, axis=0), np.std(train, axis=0)
    return [(vector - mean) / deviation for vector in train], [(vector - mean) / deviation for vector in test]


def nearest(query, gallery, count, without):
    """Indices and cosines of the gallery vectors with the highest cosine to a query."""
    similarities = []
    for vector in gallery:
        product = float(np.dot(query, vector))
        lengths = np.linalg.norm(query) * np.linalg.norm(vector)
        similarities.append(product if "unit length" in without else product / lengths)
    order = sorted(range(len(gallery)), key=lambda index: -similarities[index])[:count]
    return order, [similarities[index] for index in order]


def knn(train, test, column, names, seed=0, without=()):
    gallery, queries = means_over_views(train, names), means_over_views(test, names)
    if "standardisation" not in without:
        gallery, queries = standardised(gallery, queries)
    labels = [video.labels[column] for video in train]
    classes = sorted(set(labels))
    scores = []
    for query in queries:
        votes = dict.fromkeys(classes, 0.0)
        count = 1 if "neighbours" in without else NEIGHBOURS
        for index, cosine in zip(*nearest(query, gallery, count, without), strict=True):
            temperature = 1.0 if "temperature" in without else TEMPERATURE
            votes[labels[index]] += 1.0 if "weighting" in without else math.exp(cosine / temperature)
        scores.append([votes[label] for label in classes])
    return figures_of_scores(scores, classes, [video.labels[column] for video in test])


def retrieval(train, test, column, names, seed=0, without=()):
    gallery, queries = means_over_views(train, names), means_over_views(test, names)
    if "standardisation" not in without:
        gallery, queries = standardised(gallery, queries)
    return _recalls(gallery, queries, train, test, column, without)


def retrieval_vcop(train, test, column, names, seed=0, without=()):
    gallery, queries = means_over_views(train, names), means_over_views(test, names)
    if "no standardisation" in without:
        gallery, queries = standardised(gallery, queries)
    return _recalls(gallery, queries, train, test, column, without)


def _recalls(gallery, queries, train, test, column, without):
    labels, hits, predicted = [video.labels[column] for video in train], Counter(), []
    for query, video in zip(queries, test, strict=True):
        order, _ = nearest(query, gallery, max(RECALL_AT), without)
        found = [labels[index] for index in order]
        predicted.append(found[0])
        for k in RECALL_AT:
            hits[k] += video.labels[column] in found[:k]
    recalls = {f"R@{k}": hits[k] / len(test) for k in RECALL_AT}
    return recalls | {"mean_class_accuracy": by_class(predicted, [video.labels[column] for video in test])}


def linear(train, test, column, names, seed=0, without=()):
    vectors, test_vectors = means_over_views(train, names), means_over_views(test, names)
    if "standardisation" not in without:
        vectors, test_vectors = standardised(vectors, test_vectors)
    scores, classes, penalty = _logistic_regression(train, vectors, test_vectors, column, without)
    return figures_of_scores(scores, classes, [video.labels[column] for video in test]) | {"l2": penalty}


def low_label(train, test, column, names, seed=0, without=()):
    found = {}
    labels = [video.labels[column] for video in train]
    most = max(Counter(labels).values())
    budgets = {f"{count} per class": count for count in (1, 5, 10, 20)}
    budgets["1,000 in all"] = math.ceil(1000 / len(set(labels)))
    order = random_generator("low label", seed).permutation(len(train))
    if "drawing" in without:
        order = range(len(train))
    for name, count in budgets.items():
        if count >= most:
            continue
        rows, taken = [], Counter()
        for row in order:
            if taken[labels[row]] < count:
                rows.append(row)
            taken[labels[row]] += 1
        figures = linear([train[row] for row in sorted(rows)], test, column, names, without=without)
        found |= {f"{metric}, {name}": figures[metric] for metric in ("top1", "mean_class_accuracy")}
    return found


def _logistic_regression(train, vectors, test_vectors, column, without):
    labels = [video.labels[column] for video in train]
    groups = [video.group for video in train]
    classes = sorted(set(labels))
    penalty = PENALTIES[0]
    groups_of_class = [
        {group for group, other in zip(groups, labels, strict=True) if other == label} for label in classes
    ]
    if min(len(found) for found in groups_of_class) >= 3 and "choice of the penalty" not in without:
        fold_groups = range(len(train)) if "groups" in without else groups
        fitted, held_out = next(
            StratifiedGroupKFold(3, shuffle=True, random_state=0).split(vectors, labels, fold_groups)
        )
        right = {}
        for candidate in PENALTIES:
            scores, known = _fit(
                [vectors[row] for row in fitted],
                [labels[row] for row in fitted],
                [vectors[row] for row in held_out],
                candidate,
            )
            predicted = [known[int(np.argmax(row))] for row in scores]
            right[candidate] = sum(guess == labels[row] for guess, row in zip(predicted, held_out, strict=True))
        penalty = max(PENALTIES, key=lambda candidate: right[candidate])
    used = 0.0 if "penalty" in without else penalty
    return *_fit(vectors, labels, test_vectors, used), penalty


def _fit(vectors, labels, test_vectors, penalty):
    """Minimise mean cross-entropy + penalty / 2 * squared weights, without a penalty on the biases."""
    classes = sorted(set(labels))
    inputs, targets = np.array(vectors), np.array([[label == other for other in classes] for label in labels], float)
    shape = (inputs.shape[1], len(classes))

    def loss_and_gradient(parameters):
        weights, biases = parameters[: -len(classes)].reshape(shape), parameters[-len(classes) :]
        logits = inputs @ weights + biases
        log_softmax = logits - np.logaddexp.reduce(logits, axis=1)[:, None]
        loss = -(targets * log_softmax).sum() / len(inputs) + penalty / 2 * (weights**2).sum()
        errors = (np.exp(log_softmax) - targets) / len(inputs)
        return loss, np.concatenate([(inputs.T @ errors + penalty * weights).ravel(), errors.sum(axis=0)])

    start = np.zeros(shape[0] * shape[1] + len(classes))
    # The protocol stops early, which regularises too.
    options = {"maxiter": 200, "gtol": 1e-3, "ftol": 64 * np.finfo(float).eps, "maxls": 50}
    found = minimize(loss_and_gradient, start, jac=True, method="L-BFGS-B", options=options).x
    weights, biases = found[: -len(classes)].reshape(shape), found[-len(classes) :]
    return [vector @ weights + biases for vector in test_vectors], classes


def linear_cvrl(train, test, column, names, seed=0, without=()):
    """SGD with momentum at 32 for a batch of 1,024, warmed up for 5 of 100 epochs, on features of unit length."""
    samples = _clips(train, names, unit_length="unit length" not in without)
    size = min(1024, len(samples))
    peak, steps_per_epoch = 32 * size / 1024, len(samples) // size
    warmup, total = 5 * steps_per_epoch, 100 * steps_per_epoch

    def rate(step):
        if "cosine" in without:
            return peak
        cosine = peak * (1 + math.cos(math.pi * step / total)) / 2
        end_of_warmup = peak * (1 + math.cos(math.pi * warmup / total)) / 2
        return end_of_warmup * step / warmup if step < warmup and "warm-up" not in without else cosine

    momentum = 0.0 if "momentum" in without else 0.9

    def initial_kernel(generator, shape):
        limit = math.sqrt(6 / (shape[0] + shape[1]))
        return generator.uniform(-limit, limit, shape)

    def update(step, gradient, velocity):
        velocity = momentum * velocity + rate(step) * gradient
        return velocity, velocity

    return _trained(train, test, column, names, seed, without, samples, 100, size, initial_kernel, update, np.zeros)


def linear_severe(train, test, column, names, seed=0, without=()):
    """Adam at 0.01, times 0.3 after epochs 4 and 8 of 10, in batches of 128, on features as they are."""
    samples = _clips(train, names, unit_length="no normalisation" in without)
    steps_per_epoch = len(samples) // 128

    def rate(step):
        epoch = step // steps_per_epoch
        drops = 0 if "drops" in without else (epoch >= 4) + (epoch >= 8)
        return 0.01 * 0.3**drops

    def initial_kernel(generator, shape):
        return generator.normal(0.0, 1.0 if "initial weights" in without else 0.01, shape)

    def update(step, gradient, moments):
        if "adam" in without:
            return rate(step) * gradient, moments
        mean = 0.9 * moments[0] + 0.1 * gradient
        square = 0.999 * moments[1] + 0.001 * gradient**2
        corrected = mean / (1 - 0.9 ** (step + 1)), square / (1 - 0.999 ** (step + 1))
        return rate(step) * corrected[0] / (np.sqrt(corrected[1]) + 1e-8), (mean, square)

    def moments(shape):
        return np.zeros(shape), np.zeros(shape)

    return _trained(train, test, column, names, seed, without, samples, 10, 128, initial_kernel, update, moments)


def _clips(videos, names, unit_length):
    """(vector, video) of each view of each video."""
    found = []
    for video in videos:
        for view in range(len(video.views[names[0]])):
            vector = np.concatenate([video.views[name][view] for name in names])
            if unit_length:
                # Features are float32. In float64, another rounding would be amplified by the high learning rate.
                vector = vector / np.float32(np.linalg.norm(vector.astype(float)))
            found.append((vector.astype(float), video))
    return found


def _trained(train, test, column, names, seed, without, samples, epochs, size, initial_kernel, update, start):
    """Train a softmax regression on single views; score a test video by the mean softmax of its views."""
    generator = random_generator("softmax regression", seed)
    classes = sorted({video.labels[column] for video in train})
    # The last row holds the biases.
    weights = np.concatenate(
        [initial_kernel(generator, (len(samples[0][0]), len(classes))), np.zeros((1, len(classes)))]
    )
    memory, step = start(weights.shape), 0
    for _ in range(epochs):
        order = generator.permutation(len(samples))
        for first in range(0, len(samples), size):
            batch = [samples[row] for row in order[first : first + size]]
            if len(batch) < size and "dropped last batch" not in without:
                continue
            gradient = np.zeros_like(weights)
            for vector, video in batch:
                error = _softmax(np.append(vector, 1.0) @ weights)
                error[classes.index(video.labels[column])] -= 1
                gradient += np.outer(np.append(vector, 1.0), error) / len(batch)
            change, memory = update(step, gradient, memory)
            weights = weights - change
            step += 1
    unit_length = abs(np.linalg.norm(samples[0][0]) - 1) < 1e-5
    scores = {video.video_id: [] for video in test}
    for vector, video in _clips(test, names, unit_length):
        logits = np.append(vector, 1.0) @ weights
        scores[video.video_id].append(logits if "softmax of views" in without else _softmax(logits))
    means = [np.mean(scores[video.video_id], axis=0) for video in test]
    return figures_of_scores(means, classes, [video.labels[column] for video in test])


def _softmax(logits):
    exponentials = [math.exp(logit - max(logits)) for logit in logits]
    return np.array(exponentials) / sum(exponentials)
