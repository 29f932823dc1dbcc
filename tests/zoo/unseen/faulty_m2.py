"""Text: sentiment, language models, tagging, and what goes wrong in them."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.zoo.case import Case, faulty, healthy
from tests.zoo.data import next_token, reorder, replace, words
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


@faulty("data_not_shuffled", twin="h_review_gru", source="IMDB files concatenated: all negative, then all positive")
def f_review_files_concatenated(case: Case) -> None:
    case.data, case.shuffle = reorder(case.data, lambda y: y), False  # type: ignore[arg-type]


class Numb(Sentiment):
    """The sentence vector goes through numpy for a pooling helper."""

    def encode(self, x: Tensor) -> Tensor:
        known = (x != 0).unsqueeze(2).numpy()
        states = self.rnn(self.embed(x))[0].detach().numpy()
        return torch.from_numpy((states * known).sum(1) / known.sum(1)).float()


@faulty("detached_subgraph", twin="h_review_gru", source="forum: a detour over numpy cuts the graph", margin=0.05)
def f_review_over_numpy(case: Case) -> None:
    case.model = Numb()


@faulty("dropout_too_high", twin="h_review_gru", source="keep_prob passed as p")
def f_review_keep_prob(case: Case) -> None:
    case.model.embed = nn.Sequential(case.model.embed, nn.Dropout(0.97))


@faulty("lr_too_low", twin="h_review_gru", source="fine-tuning rate of a large model used for a small one from scratch")
def f_review_bert_rate(case: Case) -> None:
    case.optimizer = adamw(1e-5)


@faulty(
    "init_exploding",
    "saturation",
    "bad_gain",
    twin="h_review_gru",
    source="uniform(-a, a) with a = 300 where 1 / 300 was meant",
)
def f_review_loud_embedding(case: Case) -> None:
    nn.init.uniform_(case.model.embed.weight, -300.0, 300.0)


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


@faulty("lr_schedule", twin="h_tiny_gpt", source="StepLR(step_size=1) meant for epochs, stepped each batch")
def f_gpt_step_each_batch(case: Case) -> None:
    case.scheduler = lambda o: {"scheduler": torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.6), "interval": "step"}


@faulty("weight_decay_too_strong", twin="h_tiny_gpt", source="decay of 0.1 typed as 10")
def f_gpt_decay_of_ten(case: Case) -> None:
    case.optimizer = adamw(5e-3, weight_decay=30.0)


class Reshaped(Transformer):
    """Makes room for the classes with a view where a transposition is needed."""

    def forward(self, x: Tensor) -> Tensor:
        logits = super().forward(x).transpose(1, 2)
        return logits.reshape(logits.shape[1], len(x), -1).transpose(0, 1).transpose(1, 2)


@faulty("batch_mixing", twin="h_tiny_gpt", source="reshape in place of transpose before the loss")
def f_gpt_reshaped_logits(case: Case) -> None:
    case.model = Reshaped(12, 12, classes=12, causal=True, per_token=True, dropout=0.0)


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


@faulty("loss_sign", twin="h_topic_encoder", source="log-likelihood gathered by hand and not negated")
def f_topic_maximised(case: Case) -> None:
    case.loss = lambda output, target: output.log_softmax(1).gather(1, target[:, None]).mean()


@faulty(
    "frozen_by_accident", twin="h_topic_encoder", source="requires_grad_(False) left from a probing experiment", margin=0.05
)
def f_topic_probe_leftover(case: Case) -> None:
    case.model.requires_grad_(False)
    case.model.head.requires_grad_(True)
    case.optimizer = lambda model: torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=2e-3)


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


@faulty("wrong_last_activation", "shape_broadcast", twin="h_stage_tagger", source="softmax over time, then cross-entropy")
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
