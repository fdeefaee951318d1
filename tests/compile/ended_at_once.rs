#![deny(let_underscore_drop)]

fn main() -> Result<(), privilege_guard::Error> {
    let _ = privilege_guard::GroupChange::new().assume_on_thread()?;
    Ok(())
}
