//! Questions as they are heard, and answers as they are sent.

use openvpn_management::{DynamicChallenge, StaticChallenge};

use super::*;

fn secret(text: &str) -> Secret {
    Secret::new(text.as_bytes().to_vec())
}

fn static_challenge(concatenate: bool) -> Question {
    Question::Credentials {
        kind: "Auth".into(),
        challenge: Some(Challenge::of_static(&StaticChallenge {
            echo: true,
            concatenate,
            text: "Enter PIN, please".into(),
        })),
    }
}

fn pending() -> PendingChallenge {
    PendingChallenge::of(&PasswordNotification::VerificationFailed {
        kind: "Auth".into(),
        reason: None,
        challenge: Some(DynamicChallenge {
            flags: "R,E".into(),
            state_id: "state42".into(),
            username_base64: "dXMgZXI=".into(),
            text: "Second factor".into(),
        }),
    })
    .unwrap()
}

fn password_of(commands: &[Command]) -> &[u8] {
    match commands.last() {
        Some(Command::Password { password, .. }) => password.expose(),
        other => panic!("{other:?}"),
    }
}

/// A server that gets another form than the one OpenVPN's notes prescribe refuses the login.
#[test]
fn challenges_are_answered_in_their_forms() {
    let login = || Answer::Credentials {
        username: "us er".into(),
        password: secret("pw"),
        response: secret("1234"),
    };
    let commands = static_challenge(false).commands(login());
    assert_eq!(password_of(&commands), b"SCRV1:cHc=:MTIzNA==");
    let commands = static_challenge(true).commands(login());
    assert_eq!(password_of(&commands), b"pw1234");

    let asked = Notification::Password(PasswordNotification::NeedUsernamePassword {
        kind: "Auth".into(),
        challenge: None,
    });
    let question = Question::of(&asked, Some(&pending())).unwrap();
    let commands = question.commands(Answer::ChallengeResponse(secret("8675309")));
    assert_eq!(password_of(&commands), b"CRV1::state42::8675309");
    assert!(
        matches!(&commands[0], Command::Username { username, .. } if *username == "us er"),
        "{commands:?}"
    );
}

/// An answer of another kind would be a command that the daemon does not expect.
#[test]
fn an_answer_of_another_kind_is_no_command() {
    let question = Question::Password {
        kind: "Private Key".into(),
    };
    assert!(
        question
            .commands(Answer::NeedOk(NeedOkAnswer::Ok))
            .is_empty()
    );
    assert!(
        static_challenge(false)
            .commands(Answer::ChallengeResponse(secret("1")))
            .is_empty()
    );
}

/// The state of a challenge stands for a login that the server took.
#[test]
fn a_challenge_does_not_show_its_state() {
    let question = Question::Credentials {
        kind: "Auth".into(),
        challenge: Some(pending().challenge),
    };
    let shown = format!("{question:?} {question}");
    assert!(!shown.contains("state42"), "{shown}");
}

/// Only a challenge is a question: a link to log in by is not shown at all.
#[test]
fn of_the_messages_only_challenges_are_questions() {
    let message = |text: &str| Notification::Infomsg(text.into());
    assert!(Question::of(&message("WEB_AUTH::https://x"), None).is_none());
    let question = Question::of(&message("CR_TEXT:R:PIN: now?"), None);
    let expected = ChallengeText {
        text: "PIN: now?".into(),
        echo: false,
        response_wanted: true,
    };
    assert_eq!(
        question,
        Some(Question::ChallengeText {
            challenge: expected
        })
    );
}
