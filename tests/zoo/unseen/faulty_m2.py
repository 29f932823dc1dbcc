"""Text: sentiment, language models, tagging, and what goes wrong in them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, faulty, healthy
from tests.zoo.data import next_token, replace, words
from tests.zoo.more_data import regimes, reviews
from tests.zoo.nets import CE, Transformer, adam, adamw


class Sentiment(nn.Module):
    """Embedding, bidirectional GRU, the mean over what is not padding, a head."""

    def __init__(self, vocabulary: int = 40, width: int = 16, hidden: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width, padding_idx=0)
        self.rnn = nn.GRU(width, hidden, batch_first=True, bidirectional=True)
        self.head = nn.Sequential(nn.Linear(2 * hidden, 16), nn.ReLU(), nn.Linear(16, 2))

    def encode(self, x: Tensor) -> Tensor:
        known = (x != 0).unsqueeze(2)
        return (self.rnn(self.embed(x))[0] * known).sum(1) / known.sum(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encode(x))


@healthy(source="sentiment of short reviews, GRU with masked mean")
def h_review_gru(seed: int) -> Case:
    return Case(seed=seed, model=Sentiment(), data=reviews(seed), optimizer=adam(5e-3), max_steps=180, **CE)


@faulty("dropout_too_high", twin="h_review_gru", source="keep_prob passed as p")
def f_review_keep_prob(case: Case) -> None:
    case.model.embed = nn.Sequential(case.model.embed, nn.Dropout(0.97))


@faulty("lr_too_low", twin="h_review_gru", source="fine-tuning rate of a large model used for a small one from scratch")
def f_review_bert_rate(case: Case) -> None:
    case.optimizer = adamw(1e-5)


# ------------------------------------------------------------------------------------------ language model
@healthy("lr_schedule", source="nanoGPT in miniature: causal transformer, AdamW, warm-up per step, clipping at 1")
def h_tiny_gpt(seed: int) -> Case:
    return Case(
        seed=seed, model=Transformer(12, 12, classes=12, causal=True, per_token=True, dropout=0.0), data=next_token(seed),
        optimizer=adamw(5e-3), max_steps=160, trainer={"gradient_clip_val": 1.0},
        scheduler=lambda o: {
            "scheduler": torch.optim.lr_scheduler.LambdaLR(o, lambda s: min(1.0, (s + 1) / 20)), "interval": "step",
        }, **CE,
    )  # fmt: skip


@faulty("lr_schedule", "lr_too_low", twin="h_tiny_gpt", source="warm-up counted in steps, scheduler stepped per epoch")
def f_gpt_warmup_in_epochs(case: Case) -> None:
    case.scheduler = lambda o: torch.optim.lr_scheduler.LambdaLR(o, lambda s: min(1.0, (s + 1) / 4000))


# ------------------------------------------------------------------------------------------ topics
@healthy(source="topic classification, transformer encoder, dropout 0.1")
def h_topic_encoder(seed: int) -> Case:
    return Case(seed=seed, model=Transformer(), data=words(seed), optimizer=adam(2e-3), max_steps=150, **CE)


@faulty(
    "detached_subgraph",
    "wrong_loss",
    twin="h_topic_encoder",
    source="forum: loss on argmax, requires_grad_() against the error",
)
def f_topic_loss_on_argmax(case: Case) -> None:
    case.loss = lambda output, target: F.mse_loss(output.argmax(1).float().requires_grad_(), target.float())


# ------------------------------------------------------------------------------------------ tagging
class Tagger(nn.Module):
    def __init__(self, hidden: int = 20) -> None:
        super().__init__()
        self.rnn = nn.LSTM(2, hidden, batch_first=True, bidirectional=True)
        self.out = nn.Linear(2 * hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0]).transpose(1, 2)


@healthy(source="sequence tagging with a BiLSTM")
def h_stage_tagger(seed: int) -> Case:
    return Case(seed=seed, model=Tagger(), data=regimes(seed), optimizer=adam(1e-2), max_steps=150, **CE)


@faulty("wrong_last_activation", twin="h_stage_tagger", source="softmax over time, then cross-entropy")
def f_stage_softmax_over_time(case: Case) -> None:
    case.model = nn.Sequential(case.model, nn.Softmax(2))


@faulty(
    "labels_broken", "train_val_mismatch", twin="h_stage_tagger", source="annotations shifted by a few frames of one export"
)
def f_stage_shifted_annotation(case: Case) -> None:
    case.data = replace(case.data, -1, lambda y: y.roll(7, 1), val=False)  # type: ignore[arg-type]


@faulty("batch_mixing", twin="h_stage_tagger", source="batch_first forgotten in an LSTM", margin=0.08)
def f_stage_time_first(case: Case) -> None:
    case.model.rnn = nn.LSTM(2, 20, bidirectional=True)
