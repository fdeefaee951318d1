#![deny(unused_must_use)]

fn main() -> Result<(), privilege_guard::Error> {
    privilege_guard::GroupChange::new().assume_on_thread()?;
    Ok(())
}
