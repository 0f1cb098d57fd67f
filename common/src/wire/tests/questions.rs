//! Questions and answers: each bad field refused by its name.

use super::asked::{answers, questions};
use super::refusals::{refused_down, refused_up};
use super::*;

#[test]
fn each_bad_field_of_a_question_is_refused_by_name() {
    use proto::question::Question as Asked;
    use proto::session_response::Message;
    for good in questions() {
        let bad = |change: fn(&mut proto::Question), field: &str| {
            let changed = |message: &mut Message| match message {
                Message::Question(question) => change(question),
                other => panic!("{other:?}"),
            };
            refused_down(&good, changed, field);
        };
        bad(|question| question.number = 0, "question.number");
        bad(|question| question.cluster_id.clear(), "question.cluster_id");
        bad(|question| question.question = None, "question.question");
        bad(
            |question| {
                let files = proto::ListSetAsideFiles { id: "../x".into() };
                question.question = Some(Asked::ListSetAsideFiles(files));
            },
            "question.id",
        );
        bad(
            |question| {
                let id = "20260102T030405.678Z-2".into();
                let read = proto::ReadSetAside { id, file: "..".into(), offset: 0, bytes: 1 };
                question.question = Some(Asked::ReadSetAside(read));
            },
            "question.file",
        );
        bad(
            |question| {
                let id = "20260102T030405.678Z-2".into();
                let read = proto::ReadSetAside { id, file: "a".into(), offset: 0, bytes: 65_537 };
                question.question = Some(Asked::ReadSetAside(read));
            },
            "question.bytes",
        );
    }
}

#[test]
fn each_bad_field_of_an_answer_is_refused_by_name() {
    use proto::answer::Answer as Said;
    use proto::session_request::Message;
    for answer in answers() {
        let good = FromAgent::Answer(Box::new(Answer { number: 5, answer }));
        let bad = |change: fn(&mut proto::Answer), field: &str| {
            let changed = |message: &mut Message| match message {
                Message::Answer(answer) => change(answer),
                other => panic!("{other:?}"),
            };
            refused_up(&good, changed, field);
        };
        bad(|answer| answer.number = 0, "answer.number");
        bad(|answer| answer.answer = None, "answer.answer");
        bad(
            |answer| {
                let part = proto::SetAsidePart { data: vec![0; 70_000], sha256: vec![0; 32] };
                answer.answer = Some(Said::SetAsidePart(part));
            },
            "answer.data",
        );
        bad(
            |answer| {
                let part = proto::SetAsidePart { data: vec![0; 7], sha256: vec![0; 31] };
                answer.answer = Some(Said::SetAsidePart(part));
            },
            "answer.sha256",
        );
        bad(
            |answer| {
                let logs = vec![holdfast_proto::r#type::v1::SetAsideLog::default(); 65];
                answer.answer = Some(Said::SetAsideLogs(proto::SetAsideLogs { logs }));
            },
            "answer.logs",
        );
        bad(
            |answer| {
                let file = holdfast_proto::r#type::v1::SetAsideFile { name: "a/b".into(), bytes: 1 };
                answer.answer = Some(Said::SetAsideFiles(proto::SetAsideFiles { files: vec![file] }));
            },
            "answer.files[0].name",
        );
        bad(
            |answer| {
                let packages =
                    vec![proto::PackageUpgrade { name: "postgresql-15".into(), ..Default::default() }];
                let upgrades =
                    proto::Upgrades { installed_build: "15.1".into(), packages, may_install: true };
                answer.answer = Some(Said::Upgrades(upgrades));
            },
            "answer.upgrades.packages[0].installed",
        );
        bad(
            |answer| answer.answer = Some(Said::Retuning(proto::Retuning::default())),
            "answer.retuning.kept",
        );
    }
}
