// Generated from schemas/wire.schema.json; do not edit: npm run generate

/**
 * Where a run stands.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "Status".
 */
export type Status = "initializing" | "running" | "paused" | "warning" | "stopped" | "completed" | "failed";

export interface Wire {}
/**
 * What was understood: a wish to go on with, or one question.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "Advised".
 */
export interface Advised {
  /**
   * The shipped recipe that it began as; null where a question has to be answered first.
   */
  recipe: string | null;
  /**
   * The same as the wizard's own fields.
   */
  wish: Wish | null;
  /**
   * Why, one sentence each.
   */
  reasons: string[];
  /**
   * The one question that decides.
   */
  question: string | null;
  /**
   * Recipes that answer it.
   */
  choices: string[];
}
/**
 * What the wizard asks a plan for.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "Wish".
 */
export interface Wish {
  /**
   * Id of a model.
   */
  model: string;
  /**
   * "1.5x", "200M"; null keeps the size.
   */
  parameters?: string | null;
  /**
   * "2x", "16K"; null keeps the window.
   */
  context?: string | null;
  /**
   * `kjv`, or the id of an upload.
   */
  data?: string;
  /**
   * Beginning of the run's name.
   */
  name?: string | null;
  /**
   * What learns; null lets the plan choose.
   */
  train?: ("new" | "lora" | "norms" | "all" | "nothing") | null;
  /**
   * Tokens to learn from.
   */
  tokens?: string | null;
  /**
   * Peak learning rate; null lets the plan choose.
   */
  learningRate?: number | null;
  /**
   * Rank of the adapters, where adapters are trained.
   */
  loraRank?: number | null;
  /**
   * Also train the base on the same tokens, to know whether growth paid.
   */
  control?: boolean;
  /**
   * Share of the memory that the run may use.
   */
  memoryShare?: number;
  /**
   * Fields of a recipe that have no control of their own, as advice gave them; checked as a recipe is.
   */
  more?: {
    [k: string]: unknown;
  };
}
/**
 * The model that is grown.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "BaseView".
 */
export interface BaseView {
  /**
   * Its name.
   */
  name: string;
  /**
   * Its architecture.
   */
  family: string;
  /**
   * Its licence; null where nothing says.
   */
  licence: string | null;
  /**
   * Parameters.
   */
  parameters: number;
  /**
   * Blocks.
   */
  layers: number;
  /**
   * Width.
   */
  hidden: number;
  /**
   * Window, in tokens.
   */
  context: number;
}
/**
 * Mean loss of the tokens that stand at positions [start, end) of their window.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "Bucket".
 */
export interface Bucket {
  /**
   * First position.
   */
  start: number;
  /**
   * One past the last position.
   */
  end: number;
  /**
   * Mean negative log-likelihood, nats per token.
   */
  nll: number;
  /**
   * The same tokens when the model sees only its native window; None where the position is inside it.
   */
  truncated_nll?: number | null;
  /**
   * How many tokens were scored.
   */
  tokens: number;
}
/**
 * A phase that passed its gate.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "CheckpointView".
 */
export interface CheckpointView {
  /**
   * Name of the folder.
   */
  slug: string;
  /**
   * P0..P4.
   */
  stage: string;
  /**
   * What its gate said.
   */
  sentence: string;
  /**
   * What was measured; null where the phase measures nothing.
   */
  measurement: Measurement | null;
}
/**
 * Everything measured on one model; a part that was not measured is empty or None.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "Measurement".
 */
export interface Measurement {
  /**
   * The held-out text.
   */
  corpus: string;
  /**
   * Window of the base model, in tokens: the length that truncation keeps.
   */
  native_length: number;
  /**
   * Longest window that was measured.
   */
  target_length: number;
  /**
   * Mean loss on windows of the native length (or shorter, where that is said by the plan), nats per token.
   */
  short_nll?: number | null;
  /**
   * The same, one value per window, in a fixed order: pairs with other measurements of the same corpus.
   */
  short_nll_by_window?: number[];
  /**
   * Loss by position out to the target length.
   */
  buckets?: Bucket[];
  /**
   * Mean loss of blocks of neighbouring tokens in the last half native window of each long window.
   */
  tail_blocks?: number[];
  /**
   * The same blocks when this model saw only its native window; empty where that was not measured.
   */
  truncated_blocks?: number[];
  /**
   * Whose truncated reading the gain is against: this model's own, or the base's.
   */
  truncation_by?: ("self" | "base") | null;
  /**
   * Loss saved by the long context against truncation, on the same tokens, nats per token; above 0 is a gain.
   */
  context_gain?: Interval | null;
  /**
   * Retrieval by length and depth.
   */
  needles?: NeedleCell[];
  /**
   * Knowledge probe.
   */
  probe?: Probe | null;
  /**
   * Wall time of the measurement.
   */
  seconds: number;
}
/**
 * A value with its 95 % confidence interval.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "Interval".
 */
export interface Interval {
  /**
   * The point estimate.
   */
  value: number;
  /**
   * Lower end.
   */
  low: number;
  /**
   * Upper end.
   */
  high: number;
}
/**
 * Facts hidden in a text and asked for at its end, at one length and one depth.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "NeedleCell".
 */
export interface NeedleCell {
  /**
   * Tokens of context.
   */
  length: number;
  /**
   * Where the fact stood: 0 at the start (far from the question), 1 at the end (near).
   */
  depth: number;
  /**
   * Answers whose every token was the model's first choice.
   */
  found: number;
  /**
   * Questions asked.
   */
  asked: number;
  /**
   * Mean negative log-likelihood of the answers, nats per token.
   */
  nll: number;
}
/**
 * Multiple-choice questions answered by the likeliest choice.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "Probe".
 */
export interface Probe {
  /**
   * Which questions.
   */
  name: string;
  /**
   * Right answers.
   */
  correct: number;
  /**
   * Questions asked.
   */
  asked: number;
  /**
   * Accuracy of guessing.
   */
  chance: number;
  accuracy: Interval;
}
/**
 * Everything that one glance needs; validated against its schema at every emission.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "Cockpit".
 */
export interface Cockpit {
  /**
   * Which run.
   */
  runId: string;
  /**
   * When this was true.
   */
  timestamp: string;
  /**
   * P0 baseline, P1 parameters, P2 context, P3 quality, P4 merge and export.
   */
  phase: "P0" | "P1" | "P2" | "P3" | "P4";
  /**
   * Optimiser step inside the phase; 0 outside training.
   */
  step: number;
  status: Status;
  qualityMetrics: QualityMetrics;
  resourceUsage: ResourceUsage;
  humanContract: ContractState;
  /**
   * What the person can do now.
   */
  actions: ("Approve" | "Abort" | "Rollback" | "Pause" | "Resume")[];
  /**
   * One id for everything that belongs together.
   */
  traceId: string;
  /**
   * Who decided what, on which evidence.
   */
  audit?: {
    [k: string]: unknown;
  };
  /**
   * A note by the person.
   */
  userFeedback?: string | null;
}
/**
 * How good the model is now.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "QualityMetrics".
 */
export interface QualityMetrics {
  /**
   * exp of the mean held-out loss.
   */
  perplexity?: number | Nonfinite | null;
  /**
   * Change of perplexity per evaluation over the breaker's window.
   */
  perplexitySlope?: number | Nonfinite | null;
  /**
   * Share of probe questions answered right.
   */
  accuracy?: number | Nonfinite | null;
  /**
   * How much of the best parent's skill is kept over all domains.
   */
  emergentVibeScore?: number | Nonfinite | null;
  /**
   * Share of needles found at the longest window.
   */
  contextRetention?: number | Nonfinite | null;
  /**
   * The one sentence that says where the run stands.
   */
  canonicalSentence?: string;
}
/**
 * A number that JSON cannot hold.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "Nonfinite".
 */
export interface Nonfinite {
  /**
   * Always null.
   */
  value?: null;
  /**
   * Which one.
   */
  nonfinite: "nan" | "inf" | "-inf";
}
/**
 * What the run uses of the machine.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "ResourceUsage".
 */
export interface ResourceUsage {
  /**
   * GPU memory in use, GiB; null without a GPU.
   */
  vramUsedGb?: number | null;
  /**
   * GPU memory, GiB; null without a GPU.
   */
  vramTotalGb?: number | null;
  /**
   * Memory of the run's processes, GiB.
   */
  ramUsedGb?: number | null;
  /**
   * Use of all processors, per cent.
   */
  cpuUtilization?: number | null;
  /**
   * Minutes to the end of the run.
   */
  estimatedTimeLeftMin?: number | null;
  /**
   * True while part of the work runs on another machine.
   */
  hybridMode?: boolean;
  /**
   * Where that is.
   */
  cloudProvider?: string | null;
}
/**
 * How the human contract stands.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "ContractState".
 */
export interface ContractState {
  /**
   * Version that was signed.
   */
  version: string;
  /**
   * False as soon as one guarantee is broken.
   */
  guaranteesMet: boolean;
  /**
   * Seconds a gate waits.
   */
  responseWindowSec?: number;
  /**
   * When the open gate turns into a pause; null while no gate is open.
   */
  nextDecisionPoint?: string | null;
}
/**
 * A wish of the person; a decision on a gate carries the gate's id and the evidence it was made on.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "Command".
 */
export interface Command {
  /**
   * Chosen by the client; the same key never has an effect twice.
   */
  key: string;
  /**
   * What is wished.
   */
  action: "Approve" | "Abort" | "Rollback" | "Pause" | "Resume" | "Undo" | "Extend";
  /**
   * Which gate is answered.
   */
  gate?: string | null;
  /**
   * The evidence that was on the screen.
   */
  evidenceHash?: string | null;
  /**
   * Rollback: which checkpoint.
   */
  to?: string | null;
  /**
   * Rollback and Abort: the preview was shown and confirmed.
   */
  confirmed?: boolean;
}
/**
 * The human contract as it will be signed.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "ContractView".
 */
export interface ContractView {
  /**
   * Its version.
   */
  version: string;
  /**
   * Its sentences.
   */
  points: string[];
  /**
   * Fingerprint of every number and word.
   */
  textHash: string;
}
/**
 * What changed between two checkpoints.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "Difference".
 */
export interface Difference {
  /**
   * In one sentence.
   */
  sentence: string;
  /**
   * By the name of the figure.
   */
  figures: {
    [k: string]: Shift;
  };
}
/**
 * A figure at two checkpoints.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "Shift".
 */
export interface Shift {
  /**
   * At the first.
   */
  before: string;
  /**
   * At the second.
   */
  after: string;
}
/**
 * What something will need; unknown is null.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "EstimateView".
 */
export interface EstimateView {
  /**
   * Wall time.
   */
  seconds: number | null;
  /**
   * Peak memory.
   */
  memoryBytes: number | null;
  /**
   * New bytes on disk.
   */
  diskBytes: number | null;
  /**
   * How these were found.
   */
  basis: string;
}
/**
 * A measurement inside training.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "Evaluated".
 */
export interface Evaluated {
  kind?: "evaluated";
  /**
   * After which step; 0 is before training.
   */
  step: number;
  /**
   * Loss on calibration text, nats per token.
   */
  nll: number;
  /**
   * exp(nll).
   */
  perplexity: number;
  /**
   * Share of probe answers that were right; None where no probe runs in training.
   */
  accuracy?: number | null;
  /**
   * The same with its 95 % interval.
   */
  accuracy_interval?: Interval | null;
  /**
   * Questions that the probe asked.
   */
  asked?: number | null;
  /**
   * Which model was measured.
   */
  arm?: "grown" | "control";
}
/**
 * What past runs say of a wish's quality; unknown is null.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "Expected".
 */
export interface Expected {
  /**
   * Change of the loss on short text, nats per token: the better end of the band that holds four of five runs.
   */
  low: number | null;
  /**
   * The median.
   */
  middle: number | null;
  /**
   * The worse end.
   */
  high: number | null;
  /**
   * By how many runs, or why it is not known.
   */
  basis: string;
}
/**
 * A note by the person, stored with the run.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "Feedback".
 */
export interface Feedback {
  /**
   * The note.
   */
  text: string;
}
/**
 * A figure of the evidence, as a person reads it.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "Figure".
 */
export interface Figure {
  /**
   * What was measured.
   */
  name: string;
  /**
   * What came out.
   */
  value: string;
}
/**
 * One event of the stream; `seq` is the journal's own number.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "Frame".
 */
export interface Frame {
  /**
   * Number in the journal.
   */
  seq: number;
  /**
   * Seconds since 1970, UTC.
   */
  time: number;
  /**
   * In which phase.
   */
  phase: string | null;
  /**
   * What happened.
   */
  kind: string;
  /**
   * Its details.
   */
  data: {
    [k: string]: unknown;
  };
}
/**
 * One part of one layer: how the models that a run will merge differ from its base.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "FusionCell".
 */
export interface FusionCell {
  /**
   * Which layer; null outside the layers.
   */
  layer: number | null;
  /**
   * attention, feed-forward, norms or embeddings.
   */
  part: string;
  /**
   * Length of the models' changes as a share of the base's weights.
   */
  change: number;
  /**
   * Between their changes: 1 they repeat each other, 0 independent, -1 opposite; null where only one changed.
   */
  cosine: number | null;
  /**
   * Share of numbers changed by several models that all moved the same way.
   */
  agreement: number | null;
}
/**
 * What a merge at the end of a run will bring together, before it does.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "FusionView".
 */
export interface FusionView {
  /**
   * How it merges.
   */
  method: string;
  /**
   * Whose changes are compared; the base is what they are compared with.
   */
  models: string[];
  /**
   * By layer and part.
   */
  cells: FusionCell[];
}
/**
 * A question that waits for a person.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "GateView".
 */
export interface GateView {
  /**
   * Which gate; a decision names it.
   */
  id: string;
  /**
   * Which phase asks.
   */
  phase: string;
  /**
   * The canonical sentence.
   */
  sentence: string;
  /**
   * What the limits say.
   */
  action: "pass" | "ask" | "rollback";
  /**
   * What is outside a limit.
   */
  reasons: string[];
  /**
   * What the answer is made on.
   */
  evidence: Figure[];
  /**
   * Fingerprint of the evidence; a decision names it.
   */
  evidenceHash: string;
  /**
   * What was measured on the staged model.
   */
  measurement: Measurement | null;
  /**
   * Whether the breaker stopped a training: Resume, naming this gate, goes on from its last good step.
   */
  stopped: boolean;
}
/**
 * What a gate, the breaker and the supervisor hold the run to.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "LimitsView".
 */
export interface LimitsView {
  /**
   * Largest rise of the loss on short text, nats per token.
   */
  shortRegression: number;
  /**
   * Largest fall of the probe's accuracy.
   */
  accuracyDrop: number;
  /**
   * Needles at the longest window, as a share of those in the native one.
   */
  needleShare: number;
  /**
   * Largest relative rise of the perplexity per evaluation.
   */
  slope: number;
  /**
   * Most memory that a worker may use.
   */
  memoryBytes: number;
}
/**
 * A fresh one-time link.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "Link".
 */
export interface Link {
  /**
   * Path and fragment, to be put behind this server's address.
   */
  path: string;
}
/**
 * A model that can be grown; chosen by its id.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "ModelRow".
 */
export interface ModelRow {
  /**
   * `embedded`, `smollm2`, a folder or GGUF file of the folder given with --models, or a hub id that was fetched.
   */
  id: string;
  /**
   * For a person.
   */
  name: string;
  /**
   * Size and window, or what has to happen first.
   */
  detail: string;
  /**
   * False where it has to be fetched or converted first.
   */
  ready: boolean;
  /**
   * Why it cannot get even a little larger here; null where it can, or where that is not known yet.
   */
  sizeWhy?: string | null;
  /**
   * Why its window cannot be doubled here; null likewise.
   */
  windowWhy?: string | null;
}
/**
 * Make a model ready to be planned with: fetch it, or convert it.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "ModelWish".
 */
export interface ModelWish {
  /**
   * Id of a model, or of one on the Hugging Face hub (ORG/NAME).
   */
  model: string;
}
/**
 * What a command did.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "Outcome".
 */
export interface Outcome {
  /**
   * False where the same wish had been carried out before.
   */
  done: boolean;
  /**
   * In words.
   */
  sentence: string;
}
/**
 * One phase of a plan.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "PhaseView".
 */
export interface PhaseView {
  /**
   * Name of its checkpoint.
   */
  slug: string;
  /**
   * P0..P4.
   */
  stage: string;
  /**
   * baseline, grow, extend, heal, merge, export.
   */
  kind: string;
  /**
   * For a person.
   */
  title: string;
  estimate: EstimateView;
}
/**
 * A plan, as the wizard shows it; every number is the command line's.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "PlanView".
 */
export interface PlanView {
  /**
   * Beginning of the run's name.
   */
  name: string;
  base: BaseView;
  /**
   * Parameters at the end.
   */
  parameters: number;
  /**
   * Window at the end, in tokens.
   */
  context: number;
  /**
   * What will be done.
   */
  phases: PhaseView[];
  estimate: EstimateView;
  /**
   * Memory that the grown model needs later in use: its weights and the cache of one full window.
   */
  usingBytes: number;
  /**
   * What the run may use at most.
   */
  memoryLimitBytes: number;
  /**
   * What learns in P3: new, lora, norms, all; null without training.
   */
  trains: string | null;
  /**
   * Tokens it learns from; null without training.
   */
  tokens: number | null;
  /**
   * Rank of the adapters; null where none are trained.
   */
  loraRank: number | null;
  /**
   * Choices that were made and wishes that were not followed.
   */
  notes: string[];
  /**
   * The recipe as YAML, for `scaler run`.
   */
  recipe: string;
}
/**
 * What a rollback would do; nothing is changed by asking.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "Preview".
 */
export interface Preview {
  /**
   * Where it would return to.
   */
  to: string;
  /**
   * Checkpoints that would stand aside; they stay on disk until something is built over them.
   */
  leaves: string[];
  /**
   * Whether a running phase is stopped for it; its unfinished work is kept for the next attempt only.
   */
  running: boolean;
  /**
   * What had been measured there.
   */
  sentence: string;
  /**
   * A rollback is a pointer.
   */
  bytesCopied?: 0;
}
/**
 * The adapter at one matrix.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "RankView".
 */
export interface RankView {
  /**
   * In which block; null outside the blocks.
   */
  layer: number | null;
  /**
   * Which matrix of it.
   */
  matrix: string;
  /**
   * Its rank.
   */
  rank: number;
}
/**
 * Everything of one run that is not in its event stream.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "RunDetail".
 */
export interface RunDetail {
  /**
   * Name of the run folder.
   */
  id: string;
  cockpit: Cockpit;
  plan: PlanView;
  limits: LimitsView;
  /**
   * What passed, in order.
   */
  checkpoints: CheckpointView[];
  /**
   * Where the pointer stands.
   */
  current: string | null;
  /**
   * Adapters of the newest training, matrix by matrix; empty where none were trained.
   */
  ranks: RankView[];
  /**
   * The open gate.
   */
  gate: GateView | null;
  /**
   * Checkpoint that Undo returns to; null where there is nothing to undo.
   */
  undo: string | null;
  /**
   * True while a process works on the run.
   */
  alive: boolean;
  /**
   * Who signed the contract.
   */
  signedBy: string;
  /**
   * Whether the report is written.
   */
  hasReport: boolean;
  /**
   * Newest event in this answer.
   */
  sequence: number;
}
/**
 * One run in the list.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "RunRow".
 */
export interface RunRow {
  /**
   * Name of the run folder.
   */
  id: string;
  /**
   * Where it stands.
   */
  status: string;
  /**
   * Current checkpoint; null before the first.
   */
  at: string | null;
  /**
   * The newest canonical sentence; empty before the first gate.
   */
  sentence: string;
  /**
   * True while a gate waits for an answer.
   */
  waits: boolean;
  /**
   * What is grown; null where the plan cannot be read any more.
   */
  model: string | null;
  /**
   * Parameters at the end.
   */
  parameters: number | null;
  /**
   * Window at the end, in tokens.
   */
  context: number | null;
  /**
   * Why the run cannot be opened; null where it can.
   */
  trouble: string | null;
  /**
   * When it was created.
   */
  created: string;
  /**
   * When something last happened.
   */
  changed: string;
}
/**
 * A wish in a person's own words.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "Said".
 */
export interface Said {
  /**
   * The words; en, pt, es, fr, de or zh.
   */
  text: string;
  /**
   * Id of a model.
   */
  model: string;
  /**
   * A recipe, in answer to the question.
   */
  choose?: string | null;
}
/**
 * A one-time token in exchange for a session.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "Session".
 */
export interface Session {
  /**
   * From the fragment of the link.
   */
  token: string;
}
/**
 * Begin a run.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "Start".
 */
export interface Start {
  /**
   * Chosen by the client; the same key never starts two runs.
   */
  key: string;
  wish: Wish;
  /**
   * Name under the human contract.
   */
  sign: string;
  /**
   * Fingerprint of the contract text that was shown.
   */
  textHash: string;
  /**
   * Standing approval of every gate that keeps its limits.
   */
  standing?: boolean;
}
/**
 * A run that was begun.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "Started".
 */
export interface Started {
  /**
   * Its id.
   */
  id: string;
}
/**
 * One optimiser step.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "Step".
 */
export interface Step {
  kind?: "step";
  /**
   * Number of the step, from 1.
   */
  step: number;
  /**
   * Steps planned.
   */
  steps: number;
  /**
   * Training loss of this step, nats per token.
   */
  loss: number;
  /**
   * Learning rate of this step.
   */
  learning_rate: number;
  /**
   * Norm of the gradient before clipping.
   */
  gradient_norm?: number | null;
  /**
   * Tokens seen so far.
   */
  tokens: number;
  /**
   * Training speed.
   */
  tokens_per_second?: number | null;
  /**
   * Which model is trained: the grown one, or the base that it is compared with.
   */
  arm?: "grown" | "control";
}
/**
 * The circuit breaker's message: why training was stopped or warned about.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "Telegram".
 */
export interface Telegram {
  kind?: "telegram";
  /**
   * Which limit was broken.
   */
  cause: "nonfinite" | "slope" | "accuracy" | "memory" | "divergence" | "stall";
  /**
   * At which step.
   */
  step: number;
  /**
   * What was seen.
   */
  value: number | null;
  /**
   * What is allowed.
   */
  limit: number | null;
  /**
   * The same in words.
   */
  sentence: string;
  /**
   * True stops the phase; False only warns.
   */
  hard?: boolean;
}
/**
 * What is said when something cannot be done.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "Trouble".
 */
export interface Trouble {
  /**
   * What is wrong with which value.
   */
  wrong: string;
  /**
   * What to do.
   */
  cure: string;
}
/**
 * Text that was received, with what will be kept of it.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "Upload".
 */
export interface Upload {
  /**
   * Names it in a wish.
   */
  id: string;
  /**
   * What the person called it; never used as a path.
   */
  name: string;
  /**
   * Size.
   */
  bytes: number;
  /**
   * Whole texts in it.
   */
  documents: number;
  /**
   * Characters kept.
   */
  characters: number;
  /**
   * Share of the characters in each part: to learn from, to tune by, to report on.
   */
  shares: {
    [k: string]: number;
  };
  /**
   * The first characters, as they will be read.
   */
  beginning: string;
  /**
   * What was left out or changed, and why.
   */
  notes: string[];
}
/**
 * What the phase uses of the machine, seen by the supervisor about once a second.
 *
 * This interface was referenced by `Wire`'s JSON-Schema
 * via the `definition` "Usage".
 */
export interface Usage {
  kind?: "usage";
  /**
   * Memory of the worker and its children.
   */
  ram_bytes: number;
  /**
   * Use of all processors by the worker, 0 to 100; None at the first look.
   */
  cpu_percent?: number | null;
  /**
   * GPU memory of the worker; None without a GPU.
   */
  vram_bytes?: number | null;
  /**
   * Processor time that the phase took so far; None in runs of earlier releases.
   */
  cpu_seconds?: number | null;
  /**
   * Part of the phase that is done; None while unknown.
   */
  share?: number | null;
  /**
   * What is being done.
   */
  doing?: string;
  /**
   * Estimated time to the end of the run; None while unknown.
   */
  seconds_left?: number | null;
}
