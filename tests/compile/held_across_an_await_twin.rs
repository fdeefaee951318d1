fn main() {
    spawn(async {
        let guard = privilege_guard::GroupGuard::assume_on_thread(1004).map(drop);
        reply().await;
        drop(guard);
    });
}

async fn reply() {}

fn spawn(_task: impl Future<Output = ()> + Send + 'static) {}
