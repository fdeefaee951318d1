fn main() {
    let guard = privilege_guard::GroupChange::new().assume_on_thread().unwrap();
    guard.restore().unwrap();
    guard.restore().unwrap();
}
