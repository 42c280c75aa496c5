//! What a position's part of the image store is still worth, decided from facts already read.
//!
//! The store is written after the sink's COMMIT, so in one life of the sink it can only be level with it or
//! behind. Anything else (a disk from a former life of the sink, a sink restored from a dump, a worker that ran
//! on under another epoch) would put wrong images under right offsets, and no later check would see it. The
//! lineage tells: claims are rows of the sink, so a sink that went back has other tokens under the same epochs,
//! or claims that begin before the mark.
//!
//! | the mark | decision |
//! | --- | --- |
//! | none, or of another sink | clear |
//! | under a claim that the sink doesn't know, or knows under another token | clear |
//! | past the start of a later claim, or past the position | clear |
//! | level with the position and the invalidations | use |
//! | behind, and all that it misses can be had | catch up |
//! | behind too far, or what it misses is gone | clear |
//!
//! One thing is left to the caller, since no row shows it: under one claim, `next` only grows. An owner whose
//! commit is refused because the position stands elsewhere than it remembers claims again before it goes on; if
//! it read the position and went on under its old claim, a sink restored to a moment of that same claim would
//! carry two different lives under one token.
//!
//! Clearing is always right: a miss asks the sink. It only costs the reads.

use afterimage_proto::Mark;

/// Most messages that catching up reads. Past it, reading every missed message costs more than reading the
/// records that are needed from the sink.
pub const MOST_TO_CATCH_UP: u64 = 1_000_000;

/// One row of `afterimage.claim`: who owned the position from where on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Claim {
    /// Epoch that the claim raised the position to; claims of a position have successive epochs.
    pub epoch: i64,
    /// Drawn anew for every claim, so that two lives of a sink don't agree by chance.
    pub token: [u8; 16],
    /// The position's `next` when it was claimed: everything below was committed under earlier claims.
    pub from_next: i64,
}

/// What the sink says about one position, read under its claim (that claim's row included).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SinkFacts {
    /// `afterimage.meta.sink_id`.
    pub sink_id: [u8; 16],
    /// `afterimage.position.next`, exclusive.
    pub next: i64,
    /// `afterimage.position.inval_seq`: number of the last invalidation that was sent to this position.
    pub inval_seq: i64,
    /// Least `seq` of this position still in `afterimage.invalidation`; `None` = none is left.
    pub oldest_inval: Option<i64>,
    /// The position's claims, at least from the mark's epoch on, in any order.
    pub claims: Vec<Claim>,
}

/// What to do with the store's part before the first message is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Recovery {
    /// It is level with the sink.
    Use,
    /// It lags. Read [`from`, `to`) for identity only, delete what these messages touched, apply the
    /// invalidations, and write a mark of the new claim with `next = to` in the same batch as the last delete.
    ///
    /// A message touches the record that it names *and* the record that stood under its key, which may be
    /// another one (a delete may carry nothing but its key; a reused id takes the key from its former owner).
    CatchUp {
        /// First offset that the images lack.
        from: i64,
        /// End of the range, exclusive; equal to `from` when only invalidations are missing.
        to: i64,
        /// Apply invalidations with a greater `seq`.
        invalidations_after: i64,
    },
    /// It can't be trusted, or not be mended cheaply: forget the position's part, read through to the sink.
    Clear(Reason),
}

/// Why a part of the store is thrown away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// There is nothing to judge by; normal on a new disk or for a position never worked on here.
    #[error("no mark")]
    NoMark,
    /// Written for another database.
    #[error("the images belong to another sink")]
    OtherSink,
    /// The claim is not a row of this sink, or an unbroken line of claims doesn't lead from it to now.
    #[error("the sink does not know claim {epoch} as it was")]
    UnknownClaim {
        /// The mark's epoch.
        epoch: i64,
    },
    /// The images contain messages that this sink never committed in that line, or no longer has.
    #[error("the images reach to {next}, the sink only to {bound}")]
    Ahead {
        /// The mark's `next`.
        next: i64,
        /// The start of a later claim, or the position's `next`.
        bound: i64,
    },
    /// Invalidations were applied that this sink hasn't sent.
    #[error("the images had invalidation {applied}, the sink sent {sent}")]
    InvalidationsAhead {
        /// The mark's `inval_seq`.
        applied: i64,
        /// The position's `inval_seq`.
        sent: i64,
    },
    /// More than [`MOST_TO_CATCH_UP`] messages are missing.
    #[error("{messages} messages behind")]
    TooFarBehind {
        /// How many.
        messages: u64,
    },
    /// The broker no longer has the first of the missing messages, or there is no log to read.
    #[error("the log no longer has offset {from}")]
    LogGone {
        /// First offset that the images lack.
        from: i64,
    },
    /// Invalidations that were never applied are no longer kept.
    #[error("invalidations after {applied} are no longer kept")]
    InvalidationsGone {
        /// The mark's `inval_seq`.
        applied: i64,
    },
}

impl Reason {
    /// Short name, for the label of a metric.
    pub fn label(&self) -> &'static str {
        match self {
            Reason::NoMark => "no_mark",
            Reason::OtherSink => "other_sink",
            Reason::UnknownClaim { .. } => "unknown_claim",
            Reason::Ahead { .. } => "ahead",
            Reason::InvalidationsAhead { .. } => "invalidations_ahead",
            Reason::TooFarBehind { .. } => "too_far_behind",
            Reason::LogGone { .. } => "log_gone",
            Reason::InvalidationsGone { .. } => "invalidations_gone",
        }
    }
}

/// Decide what the images under `mark` are worth to `sink`. `log_start` is the broker's earliest offset of the
/// partition; `None` = unknown, or a position without a log.
pub fn recover(mark: Option<&Mark>, sink: &SinkFacts, log_start: Option<i64>) -> Recovery {
    let Some(mark) = mark else { return Recovery::Clear(Reason::NoMark) };
    match lineage(mark, sink).and_then(|()| reach(mark, sink, log_start)) {
        Ok(()) if mark.next == sink.next && mark.inval_seq == sink.inval_seq => Recovery::Use,
        Ok(()) => Recovery::CatchUp { from: mark.next, to: sink.next, invalidations_after: mark.inval_seq },
        Err(reason) => Recovery::Clear(reason),
    }
}

/// Whether the images were once true for this sink, in this life of it.
fn lineage(mark: &Mark, sink: &SinkFacts) -> Result<(), Reason> {
    if mark.sink_id != sink.sink_id {
        return Err(Reason::OtherSink);
    }
    let unknown = Reason::UnknownClaim { epoch: mark.epoch };
    let known = |epoch| sink.claims.iter().find(|claim| claim.epoch == epoch);
    if known(mark.epoch).is_none_or(|claim| claim.token != mark.token) {
        return Err(unknown);
    }
    // Without the claim that directly followed, a batch that was sent under the mark's claim and never
    // committed could hide below the start of a later one.
    let later = || sink.claims.iter().filter(|claim| claim.epoch > mark.epoch);
    if later().next().is_some() && mark.epoch.checked_add(1).and_then(known).is_none() {
        return Err(unknown);
    }
    // All later claims, not only the next: an operator may have moved the position back under one of them.
    let bound = later().map(|claim| claim.from_next).chain([sink.next]).min().unwrap_or(sink.next);
    if mark.next > bound {
        return Err(Reason::Ahead { next: mark.next, bound });
    }
    if mark.inval_seq > sink.inval_seq {
        return Err(Reason::InvalidationsAhead { applied: mark.inval_seq, sent: sink.inval_seq });
    }
    Ok(())
}

/// Whether all that the images lack can still be had, at a sane price.
fn reach(mark: &Mark, sink: &SinkFacts, log_start: Option<i64>) -> Result<(), Reason> {
    if mark.inval_seq < sink.inval_seq
        && sink.oldest_inval.is_none_or(|oldest| oldest > mark.inval_seq.saturating_add(1))
    {
        return Err(Reason::InvalidationsGone { applied: mark.inval_seq });
    }
    if mark.next == sink.next {
        return Ok(());
    }
    let messages = mark.next.abs_diff(sink.next);
    if messages > MOST_TO_CATCH_UP {
        return Err(Reason::TooFarBehind { messages });
    }
    if log_start.is_none_or(|start| mark.next < start) {
        return Err(Reason::LogGone { from: mark.next });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SINK: [u8; 16] = [1; 16];

    /// Token of an epoch in the one life of the sink that the tests call theirs.
    fn token(epoch: i64) -> [u8; 16] {
        [epoch as u8; 16]
    }

    fn mark(epoch: i64, next: i64, inval_seq: i64) -> Mark {
        Mark { sink_id: SINK, position_id: 7, epoch, token: token(epoch), next, inval_seq, missing_after: None }
    }

    /// Claims 3 (from 100), 4 (from 200) and the one just made, 5 (from 300); 6 invalidations, all kept.
    fn sink() -> SinkFacts {
        let claim = |epoch, from_next| Claim { epoch, token: token(epoch), from_next };
        SinkFacts {
            sink_id: SINK,
            next: 300,
            inval_seq: 6,
            oldest_inval: Some(1),
            claims: vec![claim(5, 300), claim(4, 200), claim(3, 100)],
        }
    }

    fn decide(mark: Mark, sink: &SinkFacts) -> Recovery {
        recover(Some(&mark), sink, Some(0))
    }

    fn cleared(mark: Mark, sink: &SinkFacts) -> Reason {
        match decide(mark, sink) {
            Recovery::Clear(reason) => reason,
            other => panic!("{mark:?} should be cleared, not {other:?}"),
        }
    }

    #[test]
    fn a_store_without_a_mark_is_cleared() {
        assert_eq!(recover(None, &sink(), Some(0)), Recovery::Clear(Reason::NoMark));
    }

    #[test]
    fn a_store_level_with_the_sink_is_used() {
        assert_eq!(decide(mark(4, 300, 6), &sink()), Recovery::Use);
        // Under the claim just made, when the decision is asked for again.
        assert_eq!(decide(mark(5, 300, 6), &sink()), Recovery::Use);
    }

    #[test]
    fn a_store_level_with_the_sink_needs_no_log_and_no_invalidation() {
        let sink = SinkFacts { oldest_inval: None, ..sink() };
        assert_eq!(recover(Some(&mark(4, 300, 6)), &sink, None), Recovery::Use);
        assert_eq!(recover(Some(&mark(4, 300, 6)), &sink, Some(10_000)), Recovery::Use);
    }

    #[test]
    fn a_store_behind_by_the_batch_in_flight_catches_up_with_it() {
        let expected = Recovery::CatchUp { from: 290, to: 300, invalidations_after: 6 };
        assert_eq!(decide(mark(4, 290, 6), &sink()), expected);
    }

    #[test]
    fn a_store_that_an_older_claim_left_catches_up_across_the_claims_between() {
        let expected = Recovery::CatchUp { from: 200, to: 300, invalidations_after: 2 };
        assert_eq!(decide(mark(3, 200, 2), &sink()), expected);
    }

    #[test]
    fn a_store_that_misses_only_invalidations_catches_up_with_an_empty_range() {
        let expected = Recovery::CatchUp { from: 300, to: 300, invalidations_after: 4 };
        assert_eq!(recover(Some(&mark(4, 300, 4)), &sink(), None), expected);
    }

    #[test]
    fn a_store_of_another_sink_is_cleared_even_where_everything_else_agrees() {
        let sink = SinkFacts { sink_id: [2; 16], ..sink() };
        assert_eq!(cleared(mark(4, 300, 6), &sink), Reason::OtherSink);
    }

    #[test]
    fn a_claim_that_the_sink_does_not_have_clears() {
        assert_eq!(cleared(mark(2, 90, 0), &sink()), Reason::UnknownClaim { epoch: 2 });
        // The sink was restored to before our claim and nobody has claimed that far since.
        assert_eq!(cleared(mark(6, 300, 6), &sink()), Reason::UnknownClaim { epoch: 6 });
        assert_eq!(cleared(mark(i64::MAX, 300, 6), &sink()), Reason::UnknownClaim { epoch: i64::MAX });
    }

    #[test]
    fn a_claim_that_another_life_of_the_sink_made_again_clears() {
        let mark = Mark { token: token(9), ..mark(4, 250, 6) };
        assert_eq!(cleared(mark, &sink()), Reason::UnknownClaim { epoch: 4 });
    }

    #[test]
    fn a_store_ahead_of_the_position_is_cleared() {
        assert_eq!(cleared(mark(5, 301, 6), &sink()), Reason::Ahead { next: 301, bound: 300 });
        assert_eq!(cleared(mark(4, 301, 6), &sink()), Reason::Ahead { next: 301, bound: 300 });
    }

    /// The trap of comparing with the position alone: the sink has passed 201 by now, but with other batches.
    #[test]
    fn a_store_that_went_past_the_start_of_the_following_claim_is_cleared_though_the_sink_is_further_on() {
        assert_eq!(cleared(mark(3, 201, 0), &sink()), Reason::Ahead { next: 201, bound: 200 });
    }

    #[test]
    fn a_store_past_a_position_that_was_moved_back_later_is_cleared_though_the_sink_is_further_on() {
        let mut sink = sink();
        sink.claims[0].from_next = 150;
        assert_eq!(cleared(mark(3, 180, 0), &sink), Reason::Ahead { next: 180, bound: 150 });
    }

    #[test]
    fn a_line_of_claims_with_a_hole_after_the_mark_clears() {
        let mut sink = sink();
        sink.claims.retain(|claim| claim.epoch != 4);
        assert_eq!(cleared(mark(3, 200, 6), &sink), Reason::UnknownClaim { epoch: 3 });
    }

    #[test]
    fn the_order_of_the_claims_does_not_matter() {
        let mut sink = sink();
        sink.claims.reverse();
        assert!(matches!(decide(mark(3, 200, 6), &sink), Recovery::CatchUp { .. }));
        assert!(matches!(cleared(mark(3, 201, 6), &sink), Reason::Ahead { .. }));
    }

    #[test]
    fn a_store_with_more_invalidations_than_were_sent_is_cleared() {
        assert_eq!(cleared(mark(4, 300, 7), &sink()), Reason::InvalidationsAhead { applied: 7, sent: 6 });
    }

    #[test]
    fn a_million_messages_are_caught_up_and_one_more_clears() {
        let mut sink = sink();
        (sink.next, sink.claims[0].from_next) = (1_000_250, 1_000_250);
        let expected = Recovery::CatchUp { from: 250, to: 1_000_250, invalidations_after: 6 };
        sink.claims[1].from_next = 100;
        assert_eq!(decide(mark(4, 250, 6), &sink), expected);
        assert_eq!(cleared(mark(4, 249, 6), &sink), Reason::TooFarBehind { messages: 1_000_001 });
    }

    #[test]
    fn a_range_that_the_log_no_longer_has_from_its_start_clears() {
        let decide = |log_start| recover(Some(&mark(4, 250, 6)), &sink(), log_start);
        assert!(matches!(decide(Some(250)), Recovery::CatchUp { from: 250, .. }));
        assert_eq!(decide(Some(251)), Recovery::Clear(Reason::LogGone { from: 250 }));
        assert_eq!(decide(None), Recovery::Clear(Reason::LogGone { from: 250 }));
    }

    #[test]
    fn invalidations_that_are_no_longer_kept_clear() {
        let kept_from = |oldest_inval| decide(mark(4, 300, 3), &SinkFacts { oldest_inval, ..sink() });
        assert!(matches!(kept_from(Some(4)), Recovery::CatchUp { invalidations_after: 3, .. }));
        assert_eq!(kept_from(Some(5)), Recovery::Clear(Reason::InvalidationsGone { applied: 3 }));
        assert_eq!(kept_from(None), Recovery::Clear(Reason::InvalidationsGone { applied: 3 }));
    }

    /// Marks come from a disk: whatever numbers stand there, the answer is a decision.
    #[test]
    fn extreme_numbers_never_panic_and_never_trust() {
        for number in [i64::MIN, -1, i64::MAX] {
            for mark in [mark(number, 300, 6), mark(4, number, 6), mark(4, 300, number)] {
                assert!(matches!(decide(mark, &sink()), Recovery::Clear(_)), "{mark:?}");
            }
        }
        let extreme = SinkFacts { next: i64::MAX, inval_seq: i64::MAX, oldest_inval: Some(i64::MIN), ..sink() };
        assert!(matches!(decide(mark(4, i64::MIN, i64::MIN), &extreme), Recovery::Clear(_)));
    }

    /// A slow reference: replay every history of claims and commits of a small world, in which each life of the
    /// sink writes its own content, and ask whether the images at the mark equal the sink's at that offset.
    #[test]
    fn what_is_not_cleared_was_true_in_this_life_of_the_sink() {
        use proptest::{collection::vec, prelude::*, test_runner::TestRunner};

        #[derive(Debug, Clone)]
        enum Step {
            /// A new owner, with a store of its own.
            Claim,
            /// The owner commits some offsets, if the position is where it remembers, and then writes its store,
            /// or not yet.
            Commit { messages: i64, stored: bool },
            /// A sink restored from a dump taken at some earlier step.
            Restore { step: prop::sample::Index },
        }
        /// Content of every committed offset: the life and claim that wrote it.
        #[derive(Debug, Clone, Default)]
        struct Sink {
            content: Vec<u32>,
            claims: Vec<Claim>,
        }

        let step = prop_oneof![
            3 => Just(Step::Claim),
            6 => (1..4i64, any::<bool>()).prop_map(|(messages, stored)| Step::Commit { messages, stored }),
            1 => any::<prop::sample::Index>().prop_map(|step| Step::Restore { step }),
        ];
        let (good, bad) = (std::cell::Cell::new(0), std::cell::Cell::new(0));
        TestRunner::deterministic()
            .run(&vec(step, 1..40), |steps| {
                let (mut sink, mut dumps, mut disks) = (Sink::default(), vec![Sink::default()], Vec::new());
                let (mut drawn, mut owner_next) = (0u8, 0);
                for (written, step) in steps.into_iter().enumerate() {
                    match step {
                        Step::Claim => {
                            drawn += 1;
                            owner_next = sink.content.len();
                            sink.claims.push(Claim {
                                epoch: sink.claims.len() as i64 + 1,
                                token: [drawn; 16],
                                from_next: owner_next as i64,
                            });
                        }
                        Step::Commit { messages, stored } => {
                            let Some(claim) = sink.claims.last() else { continue };
                            // The compare-and-set of the commit, and the owner's token in it.
                            if owner_next != sink.content.len() || claim.token != [drawn; 16] {
                                continue;
                            }
                            sink.content.extend((0..messages).map(|_| written as u32));
                            owner_next = sink.content.len();
                            if stored {
                                let (epoch, token) = (claim.epoch, claim.token);
                                let next = sink.content.len() as i64;
                                let mark = Mark {
                                    sink_id: SINK,
                                    position_id: 7,
                                    epoch,
                                    token,
                                    next,
                                    inval_seq: 0,
                                    missing_after: None,
                                };
                                disks.push((mark, sink.content.clone()));
                            }
                        }
                        Step::Restore { step } => sink = dumps[step.index(dumps.len())].clone(),
                    }
                    dumps.push(sink.clone());
                }
                // Somebody claims; every disk ever written might be the one in the machine.
                drawn += 1;
                let next = sink.content.len() as i64;
                sink.claims.push(Claim { epoch: sink.claims.len() as i64 + 1, token: [drawn; 16], from_next: next });
                let facts =
                    SinkFacts { sink_id: SINK, next, inval_seq: 0, oldest_inval: None, claims: sink.claims.clone() };
                for (mark, images) in disks {
                    let true_here = sink.content.starts_with(&images);
                    match decide(mark, &facts) {
                        Recovery::Use => prop_assert_eq!(&images, &sink.content),
                        Recovery::CatchUp { from, to, .. } => {
                            prop_assert!(true_here && from == images.len() as i64 && to == next, "{:?}", mark);
                        }
                        // Never thrown away for nothing, in this world without holes.
                        Recovery::Clear(_) => prop_assert!(!true_here, "{:?} was good", mark),
                    }
                    let seen = if true_here { &good } else { &bad };
                    seen.set(seen.get() + 1);
                }
                Ok(())
            })
            .unwrap_or_else(|error| panic!("{error}"));
        let (good, bad) = (good.get(), bad.get());
        assert!(good > 100 && bad > 100, "the world must show both: {good} good, {bad} bad");
    }
}
