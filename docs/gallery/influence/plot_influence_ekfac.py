"""
Which training sentences made it say that?
==========================================

A two-block Llama memorises who holds which office in a small invented world. We then ask it one question and trace
the answer: EK-FAC influence gives every training sentence a number of nats, the first-order change of the answer's
log-probability if that sentence were in the data once more.
"""

# %%
# The world, and a model that has learned it
# ------------------------------------------
# Every fact is stated three times, in different words. The question uses the wording of one of them.

import tempfile

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap
from transformers import LlamaConfig, LlamaForCausalLM

from hesse.influence import Influence, office_world
from hesse.influence.demo import TrainingSettings, recalled, train_language_model
from hesse.influence.facts import word_sequences

torch.manual_seed(0)
torch.set_num_threads(2)
world = office_world(0, num_forward=40, num_reverse=40, num_held_out=8)
sentences, questions = word_sequences(world)
config = LlamaConfig(
    vocab_size=len(world.vocabulary),
    hidden_size=64,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=4,
    max_position_embeddings=32,
    bos_token_id=None,
    eos_token_id=None,
    pad_token_id=0,
)
model = LlamaForCausalLM(config)
settings = TrainingSettings(epochs=25, learning_rate=3e-3, weight_decay=0.0, batch_tokens=512)
train_language_model(model, sentences, settings, show_progress=False)
right = recalled(model, questions)
print(f"{right.sum()} of {len(questions)} questions answered right")

# %%
# Fit once, then ask
# ------------------
# The fitted factors stay in the folder; a second question would only cost its own gradient and one pass over the
# sentences.

folder = tempfile.TemporaryDirectory()
influence = Influence(model)
influence.fit(sentences, folder.name, progress=False)
scores = influence.score(questions, sentences, folder.name, rank=None, per_token=True, per_layer=True, progress=False)

query = int(np.flatnonzero(right)[0])
text = {s.id: s.text for s in sentences}
supporting = set(world.supports[questions[query].id])
print("asked:", questions[query].text)
for line in scores.topk(query, 6):
    print(f"{line.score:+.4f} nats  {'states it ' if line.id in supporting else '          '} {text[line.id]}")

# %%
# Few sentences carry most of it, and they are the right ones. Blue raises the answer's log-probability, orange lowers
# it; a ring marks the sentences that state the fact. On the right, the same scores before the sum over layers.
#
# No answer has this many nats to gain. In so small a world one more copy is no small change, and the first order
# overshoots: trust the order of the sentences here, not the size of the numbers.

values = scores.values[query]
order = np.argsort(-values)
shown = order[:40]
names = np.array(scores.train_ids)
colour = {True: "#2166ac", False: "#b35806"}
shades = LinearSegmentedColormap.from_list("orange to blue", [colour[False], "#f7f7f7", colour[True]])
figure, (left, middle) = plt.subplots(1, 2, figsize=(11, 4.2), width_ratios=[1.25, 1], layout="constrained")
left.bar(range(len(shown)), values[shown], color=[colour[bool(v > 0)] for v in values[shown]], width=0.8)
rings = [i for i, n in enumerate(shown) if names[n] in supporting]
left.plot(
    rings, values[shown][rings], "o", markersize=12, markerfacecolor="none", color="black", label="states the fact"
)
left.set(xlabel="training sentence, strongest first", ylabel="influence (nats a copy)", title=questions[query].text)
left.legend(frameon=False)
left.spines[["top", "right"]].set_visible(False)

layers = scores.layers[query][order[:8]]
limit = np.abs(layers).max()
image = middle.imshow(layers, cmap=shades, vmin=-limit, vmax=limit, aspect="auto")
middle.set_yticks(range(8), [text[names[n]][:60] for n in order[:8]], fontsize=8)
short = [name.removeprefix("model.layers.").replace("mlp.", "").replace("_proj", "") for name in scores.layer_names]
middle.set_xticks(range(len(short)), short, rotation=45, ha="right", fontsize=8)
middle.set_title("by layer")
figure.colorbar(image, ax=middle, label="nats a copy")

# %%
# Token by token
# --------------
# The terms of one score, a position each. A position's value is the effect of the update made there, which receives
# gradients from later words: the natural credit for a word sits on the position *before* it.

best = [line.id for line in scores.topk(query, 4)]
rows = [scores.tokens(query, name) for name in best]
limit = max(np.abs(row).max() for row in rows)
figure, axis = plt.subplots(figsize=(11, 2.6), layout="constrained")
for y, (name, row) in enumerate(zip(best, rows, strict=True)):
    for x, (word, value) in enumerate(zip(text[name].split(), row, strict=True)):
        shade = shades(0.5 + 0.5 * value / limit)
        axis.add_patch(plt.Rectangle((x, -y - 0.45), 0.96, 0.9, color=shade))
        ink = "white" if abs(value) > 0.6 * limit else "black"
        axis.text(x + 0.48, -y, word, ha="center", va="center", fontsize=9, color=ink)
axis.set(xlim=(0, max(map(len, rows))), ylim=(-len(best) + 0.5, 0.5))
axis.axis("off")
axis.set_title("terms of the score at each position, four strongest sentences", fontsize=10)
plt.show()
folder.cleanup()
