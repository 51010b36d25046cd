//! `questions` and `answer`: what daemons ask, and what they are told.

use std::io::{self, IsTerminal as _, Read as _};

use jiff::Timestamp;
use ovfleet_proto::v1::{
    AnswerQuestionRequest, ChallengeResponseAnswer, CredentialsAnswer, GetInstanceRequest,
    ListInstancesRequest, ListInstancesResponse, NeedOkAnswer, NeedStrAnswer, OpenQuestion,
    PasswordAnswer, RemoteAnswer, answer_question_request::Answer, open_question::Question,
    remote_answer::Action,
};

use crate::{
    action::new_request_id,
    args::{AnswerArgs, Format, InstancesOnlyArgs},
    failure::{Failure, Outcome, Verdict},
    gateway::Gateway,
    json,
    listing::{Page, collect, full_name, report_unreachable},
    output::{Output, note},
    table::{Table, column},
    text::{age, escape},
};

/// Longest secret that is read from standard input.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

pub(crate) async fn questions(
    gateway: &Gateway,
    args: InstancesOnlyArgs,
    output: &mut Output,
) -> Outcome {
    let selector = args.instances.selector();
    let listing = collect(None, async |page_size, page_token| {
        let request = ListInstancesRequest {
            selector: Some(selector.clone()),
            page_size,
            page_token,
            conditions: Vec::new(),
        };
        let response = gateway
            .fleet()
            .list_instances(gateway.request(request))
            .await?;
        let ListInstancesResponse {
            instances,
            next_page_token,
            unreachable,
            as_of,
        } = response.into_inner();
        Ok(Page {
            rows: instances,
            next_page_token,
            unreachable,
            as_of,
        })
    })
    .await
    .map_err(|status| gateway.failure(status))?;
    let rows = listing.rows.into_iter().flat_map(|instance| {
        let name = instance.spec.unwrap_or_default().name;
        let name = full_name(&instance.gateway, &name);
        let questions = instance.status.unwrap_or_default().questions;
        questions
            .into_iter()
            .map(move |asked| (name.clone(), asked))
    });
    let rows: Vec<_> = rows.collect();
    match output.format() {
        Format::Table if rows.is_empty() => note("ovfleet: nobody asks anything"),
        Format::Table => {
            let mut table = Table::new([
                column("INSTANCE"),
                column("ID").right(),
                column("ASKED").right().rank(1),
                column("QUESTION"),
            ]);
            for (name, asked) in &rows {
                table.row([
                    escape(name).into(),
                    asked.id.to_string().into(),
                    age(asked.asked_time.as_ref(), Timestamp::now()).into(),
                    escape(&asked.text).into(),
                ]);
            }
            output.table(&table, false)?;
        }
        Format::Json | Format::Jsonl => {
            let mut documents = Vec::new();
            for (name, asked) in &rows {
                documents.push(serde_json::json!({
                    "instance": name,
                    "question": json::value("OpenQuestion", asked)?,
                }));
            }
            if output.format() == Format::Json {
                let document = serde_json::json!({ "questions": documents });
                output.line(&format!("{document:#}"))?;
            } else {
                for document in documents {
                    output.line(&document.to_string())?;
                }
            }
        }
    }
    Ok(report_unreachable(gateway, &selector, &listing.unreachable).await)
}

pub(crate) async fn answer(gateway: &Gateway, args: AnswerArgs, output: &mut Output) -> Outcome {
    let asked = find(gateway, &args).await?;
    let request = AnswerQuestionRequest {
        instance: args.instance.clone(),
        question_id: asked.id,
        answer: Some(compose(&args, &asked)?),
        request_id: new_request_id()?,
    };
    let response = gateway
        .instances()
        .answer_question(gateway.request(request))
        .await
        .map_err(|status| gateway.failure(status))?
        .into_inner();
    match output.format() {
        Format::Table => output.line(&escape(&response.text))?,
        Format::Json | Format::Jsonl => output.json_line("AnswerQuestionResponse", &response)?,
    }
    Ok(Verdict::Done)
}

/// The question that is meant: by number, or the only one.
async fn find(gateway: &Gateway, args: &AnswerArgs) -> Result<OpenQuestion, Failure> {
    let request = GetInstanceRequest {
        name: args.instance.clone(),
    };
    let instance = gateway
        .fleet()
        .get_instance(gateway.request(request))
        .await
        .map_err(|status| gateway.failure(status))?
        .into_inner()
        .instance
        .unwrap_or_default();
    let open = instance.status.unwrap_or_default().questions;
    let mut meant = open
        .iter()
        .filter(|asked| args.id.is_none_or(|id| asked.id == id));
    match (meant.next(), meant.next()) {
        (Some(asked), None) => Ok(asked.clone()),
        (None, _) => Err(Failure::Failed(match args.id {
            Some(id) => format!("{} does not ask question {id}", args.instance),
            None => format!("{} asks nothing", args.instance),
        })),
        (Some(_), Some(_)) => Err(Failure::Usage(format!(
            "{} asks more than one thing: say which with --id; `ovfleet questions --instance {}` lists them",
            args.instance, args.instance
        ))),
    }
}

/// The answer in the form that the question wants.
fn compose(args: &AnswerArgs, asked: &OpenQuestion) -> Result<Answer, Failure> {
    let words = escape(&asked.text);
    let want = |option: &str| Failure::Usage(format!("`{words}` wants {option}"));
    Ok(match &asked.question {
        Some(Question::Password(_)) => Answer::Password(PasswordAnswer {
            password: secret(&words)?,
        }),
        Some(Question::Credentials(credentials)) => match &credentials.dynamic_challenge {
            Some(_) => Answer::ChallengeResponse(ChallengeResponseAnswer {
                response: response(args, &words)?,
            }),
            None => Answer::Credentials(CredentialsAnswer {
                username: args
                    .username
                    .clone()
                    .ok_or_else(|| want("--username NAME"))?,
                password: if credentials.username_only {
                    String::new()
                } else {
                    secret(&words)?
                },
                response: match &credentials.static_challenge {
                    Some(_) => args
                        .response
                        .clone()
                        .ok_or_else(|| want("--response TEXT"))?,
                    None => String::new(),
                },
            }),
        },
        Some(Question::Challenge(_)) => Answer::ChallengeResponse(ChallengeResponseAnswer {
            response: response(args, &words)?,
        }),
        Some(Question::NeedOk(_)) => Answer::NeedOk(NeedOkAnswer {
            ok: match (args.ok, args.cancel) {
                (true, _) => true,
                (_, true) => false,
                _ => return Err(want("--ok or --cancel")),
            },
        }),
        Some(Question::NeedStr(_)) => Answer::NeedStr(NeedStrAnswer {
            value: response(args, &words)?,
        }),
        Some(Question::Remote(_)) => {
            let action = match (args.ok, args.cancel) {
                (true, _) => Action::Accept(true),
                (_, true) => Action::Skip(1),
                _ => return Err(want("--ok (connect there) or --cancel (try the next one)")),
            };
            Answer::Remote(RemoteAnswer {
                action: Some(action),
            })
        }
        Some(Question::Certificate(_) | Question::Signature(_) | Question::Proxy(_)) | None => {
            return Err(Failure::Failed(format!(
                "`{words}` cannot be answered from here; AnswerQuestion of the API can"
            )));
        }
    })
}

fn response(args: &AnswerArgs, words: &str) -> Result<String, Failure> {
    match &args.response {
        Some(response) => Ok(response.clone()),
        None => secret(words),
    }
}

/// A secret from standard input: never from the command line, which every user of the machine can see.
fn secret(words: &str) -> Result<String, Failure> {
    let mut stdin = io::stdin();
    let failed = |error| Failure::Failed(format!("cannot read the answer: {error}"));
    let mut text = String::new();
    if stdin.is_terminal() {
        note(&format!("{words}:"));
        let _hidden = crate::terminal::hide_input(&stdin).map_err(failed)?;
        stdin.read_line(&mut text).map_err(failed)?;
    } else {
        let mut limited = stdin.by_ref().take(SECRET_BYTES_MAX);
        limited.read_to_string(&mut text).map_err(failed)?;
    }
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err(Failure::Usage(
            "there is no answer on standard input".to_owned(),
        ));
    }
    Ok(text.to_owned())
}
