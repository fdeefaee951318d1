fn main() {
    let guard = privilege_guard::GroupGuard::assume_on_thread(1004);
    std::thread::spawn(move || drop(guard));
}
